"""The Retriever against scores computed by hand, and what it does with histories of every kind."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from untrained import random_model, write_run

from recsys.batch import Batch
from recsys.checkpoint import (
    CONFIG,
    ITEMS,
    WEIGHTS,
    load_model,
    read_items,
    write_items,
    write_tensors,
)
from recsys.errors import InputError
from recsys.models.base import CountingModel, Recommender
from recsys.retrieval import Recommendations, Retriever, answers
from recsys.retrieval.snapshot import Snapshot
from recsys.run import prepare, train

RAW = ["007", "+7", "ä,ö", "", " x ", "[b]", "7", "B00A", "b00a", "🎧", "null", "1.50"]
COUNTS = [3, 9, 0, 4, 12, 1, 7, 5, 2, 8, 11, 6]
BY_COUNT = [" x ", "null", "+7", "🎧", "7", "1.50", "B00A", "", "007", "b00a", "[b]", "ä,ö"]
SETTINGS: dict[str, dict[str, Any]] = {
    "sasrec": {"dim": 8, "max_len": 4},
    "hstu_rec": {"dim": 8, "max_len": 4},
    "popular": {},
    "item_knn": {},
}
HISTORIES = [["007"], ["7", "+7"], ["", "🎧", "null", "[b]", "B00A", "7"], ["ä,ö"] * 5, RAW[:-1]]


def saved_run(run: Path, catalogue: pa.Table, name: str = "sasrec") -> Path:
    """A run folder made by hand: random weights, or counts of one history through all items."""
    size, settings = catalogue.num_rows, SETTINGS[name]
    model = random_model(name, settings, size, seed=3)
    if isinstance(model, CountingModel):
        model.fit(torch.arange(1, size + 1), torch.tensor([0, size]), torch.zeros(size))
    return write_run(run, model, name, settings, catalogue)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = pa.table({"item": RAW, "count": COUNTS})
    return saved_run(tmp_path_factory.mktemp("runs") / "run", table)


@pytest.fixture(scope="module")
def retriever(run: Path) -> Retriever:
    return Retriever.load(run)


@torch.no_grad()
def scores_by_hand(model: Recommender, history: list[int]) -> np.ndarray:
    """[V+1] query . item, from the last max_len items of one history."""
    cut = history[-model.max_len :]
    batch = Batch(torch.tensor([cut]), torch.tensor([len(cut)]))
    query_D = model.encode(batch)[0, -1].double().numpy()
    return model.item_vectors().double().numpy() @ query_D


def assert_alike(found: Recommendations, wanted: Recommendations) -> None:
    assert found.items == wanted.items
    assert found.scores == pytest.approx(wanted.scores, rel=1e-5, abs=1e-5)
    assert found.titles == wanted.titles
    assert found.unknown == wanted.unknown
    assert found.fallback == wanted.fallback


@pytest.mark.parametrize("history", HISTORIES)
def test_items_and_scores_are_those_computed_by_hand(run, retriever, history):
    numbers = [RAW.index(raw) + 1 for raw in history]
    scores = scores_by_hand(load_model(run), numbers)
    order = [int(item) for item in np.argsort(-scores) if item not in {0, *numbers}]
    found = retriever.recommend(history, k=5)
    assert found.items == [RAW[item - 1] for item in order[:5]]
    assert found.scores == pytest.approx(scores[order[:5]].tolist(), rel=1e-4, abs=1e-4)


def test_results_are_sorted_and_name_an_item_once(retriever):
    for history in HISTORIES:
        found = retriever.recommend(history, k=12, exclude_seen=False)
        assert found.scores == sorted(found.scores, reverse=True)
        assert len(set(found.items)) == len(found.items) == 12


@pytest.mark.parametrize(
    ("column", "raw"),
    [
        (RAW, RAW),
        ([5, -3, 2**62, 0], [5, -3, 2**62, 0]),
        ([2.0, 1.0, -4.0, 7.0], [2, 1, -4, 7]),
        ([1.5, 2.0, -0.25, 7.0], ["1.5", "2.0", "-0.25", "7.0"]),
    ],
)
def test_ids_of_a_log_come_back_as_they_were(tmp_path, column, raw):
    # Every user walks through the items once in order, from another place.
    size = len(column)
    places = [(user + step) % size for user in range(size) for step in range(size)]
    log = pa.table(
        {
            "user": np.repeat(np.arange(size), size),
            "item": [column[place] for place in places],
            "time": list(range(size)) * size,
        }
    )
    prepare(log, tmp_path / "data")
    found = Retriever.load(train(tmp_path / "data", "item_knn", tmp_path / "run"))
    for place in range(size):
        (item,) = found.recommend([raw[place]], k=1).items
        assert (item, type(item)) == (raw[(place + 1) % size], type(raw[0]))


def test_the_run_folder_alone_is_enough(run, retriever, tmp_path):
    for name in (CONFIG, WEIGHTS, ITEMS):
        shutil.copy(run / name, tmp_path / name)
    found = Retriever.load(str(tmp_path))
    for history in HISTORIES:
        assert found.recommend(history) == retriever.recommend(history)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, ITEMS])
def test_a_run_folder_with_a_file_missing_is_refused(run, tmp_path, name):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(InputError, match=name):
        Retriever.load(tmp_path / "run")


@pytest.mark.parametrize("rows", [11, 13])
def test_a_catalogue_that_does_not_fit_the_weights_is_refused(run, tmp_path, rows):
    shutil.copytree(run, tmp_path / "run")
    write_items(tmp_path / "run", pa.table({"item": [*RAW, "more"][:rows]}))
    with pytest.raises(InputError, match=ITEMS):
        Retriever.load(tmp_path / "run")


def test_seen_items_come_back_only_where_asked_for(retriever):
    for history in HISTORIES:
        assert not set(retriever.recommend(history, k=12).items) & set(history)
        found = retriever.recommend(history, k=12, exclude_seen=False)
        assert sorted(found.items) == sorted(RAW)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("kind", [list, set, tuple])
def test_excluded_items_do_not_come_back_and_the_next_best_do(retriever, exclude_seen, kind):
    history = ["7", "+7"]
    free = retriever.recommend(history, k=12, exclude_seen=exclude_seen)
    hidden = [*free.items[:2], free.items[5], "no such item"]
    found = retriever.recommend(history, 4, exclude=kind(hidden), exclude_seen=exclude_seen)
    assert found.items == [item for item in free.items if item not in hidden][:4]
    assert found.unknown == []


def test_a_word_is_not_a_collection_of_ids_to_exclude(retriever):
    with pytest.raises(InputError, match="B00A"):
        retriever.recommend(["7"], exclude="B00A")


def test_unknown_ids_are_skipped_and_reported(retriever):
    found = retriever.recommend(["x", "7", 7, "+7", None, "x"], k=5)
    assert found.unknown == ["x", 7, None, "x"]
    assert (found.items, found.fallback) == (retriever.recommend(["7", "+7"], k=5).items, None)


@pytest.mark.parametrize("history", [[], ["x"], ["x", 7]])
def test_without_a_known_item_popularity_answers_and_says_so(retriever, history):
    found = retriever.recommend(history, k=4, exclude=["null", "x"])
    assert found.items == [" x ", "+7", "🎧", "7"]
    assert found.scores == [12, 9, 8, 7]
    assert (found.fallback, found.unknown) == ("popularity", history)


def test_popularity_reaches_the_items_that_nobody_bought(retriever):
    assert retriever.recommend([], k=99).items == BY_COUNT


@pytest.mark.parametrize("k", [11, 12, 13, 10_000])
def test_more_than_the_catalogue_gives_all_of_it(retriever, k):
    found = retriever.recommend(["7", "7"], k)
    assert sorted(found.items) == sorted(set(RAW) - {"7"})
    assert np.isfinite(found.scores).all()
    assert len(found.items) == len(found.scores) == len(found.titles)


def test_nothing_is_left_of_a_catalogue_that_was_seen_whole(retriever):
    found = retriever.recommend(RAW)
    assert (found.items, found.scores, found.titles) == ([], [], [])
    assert retriever.recommend([], exclude=RAW).items == []


@pytest.mark.parametrize("k", [0, -1])
def test_less_than_one_item_is_refused(retriever, k):
    for history in (["7"], []):
        with pytest.raises(InputError, match=f"k must be at least 1, got {k}"):
            retriever.recommend(history, k)


@pytest.mark.parametrize("history", ["7", b"7", 7, None, {"7"}, {"7": 1}])
def test_what_is_no_list_of_ids_is_refused(retriever, history):
    with pytest.raises(InputError, match="a history is a list of item ids"):
        retriever.recommend(history)
    with pytest.raises(InputError, match="a history is a list of item ids"):
        retriever.recommend_batch([["7"], history])


@pytest.mark.parametrize("history", [[["7", "+7"]], np.array([["7", "+7"]]), [{"item": "7"}]])
def test_a_list_of_what_cannot_be_an_id_is_refused(retriever, history):
    with pytest.raises(InputError, match="item id"):
        retriever.recommend(history)


@pytest.mark.parametrize("kind", [tuple, np.array, lambda ids: np.array(ids, dtype=object)])
def test_tuples_and_numpy_arrays_are_histories(retriever, kind):
    history = ["7", "no such item", "+7"]
    found = retriever.recommend(kind(history))
    assert_alike(found, retriever.recommend(history))
    assert type(found.unknown[0]) is str


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_numpy_numbers_are_the_ids_they_stand_for(tmp_path, dtype):
    found = Retriever.load(saved_run(tmp_path, pa.table({"item": [30, 10, 20, 50, 40]})))
    wanted = found.recommend([10, 50], k=2)
    for history in (np.array([10, 50], dtype=dtype), [dtype(10), dtype(50)]):
        assert_alike(found.recommend(history, k=2), wanted)
    assert {type(item) for item in wanted.items} == {int}


@pytest.mark.parametrize("exclude", [[], ["null", " x "]])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_batch_of_different_lengths_equals_one_by_one(retriever, exclude, exclude_seen):
    mixed = [[], *HISTORIES, ["x"], ["x", "7"], []]
    options = {"exclude": exclude, "exclude_seen": exclude_seen}
    batch = retriever.recommend_batch(mixed, 12, **options)
    assert len(batch) == len(mixed)
    for history, found in zip(mixed, batch, strict=True):
        assert_alike(found, retriever.recommend(history, 12, **options))


def test_scores_of_a_large_batch_are_never_in_memory_together(retriever, monkeypatch):
    asked = retriever.recommend_batch(HISTORIES * 3, 12)
    sizes, search = [], Snapshot.search_queries

    def counted(now, query_BD, *rest):
        sizes.append(len(query_BD))
        return search(now, query_BD, *rest)

    monkeypatch.setattr(Snapshot, "search_queries", counted)
    monkeypatch.setattr(answers, "SCORES", 1)
    monkeypatch.setattr(answers, "FEWEST", 4)
    for found, wanted in zip(retriever.recommend_batch(HISTORIES * 3, 12), asked, strict=True):
        assert_alike(found, wanted)
    assert max(sizes) == 4
    assert sum(sizes) == len(HISTORIES * 3)


def test_an_empty_batch_has_no_answers(retriever):
    assert retriever.recommend_batch([]) == []


def test_a_long_history_is_its_last_items_and_all_of_it_is_seen(retriever):
    older, last = ["null", " x ", "1.50"], ["007", "+7", "7", "B00A"]
    found = retriever.recommend(older + last, k=12)
    assert sorted(found.items) == sorted(set(RAW) - set(older + last))
    assert_alike(found, retriever.recommend(last, k=12, exclude=older))


def test_titles_belong_to_their_items(run, tmp_path):
    titles = [None if i % 3 == 0 else f"Title [{raw}]" for i, raw in enumerate(RAW)]
    saved_run(tmp_path, read_items(run).append_column("title", [titles]))
    found = Retriever.load(tmp_path)
    of = dict(zip(RAW, titles, strict=True))
    for history in (["7"], []):
        shown = found.recommend(history, k=12)
        assert shown.titles == [of[item] for item in shown.items]
    assert found.titles(["+7", "x", "007", "b00a"]) == ["Title [+7]", None, None, "Title [b00a]"]


def test_a_catalogue_without_titles_or_counts_serves_too(tmp_path):
    found = Retriever.load(saved_run(tmp_path, pa.table({"item": RAW})))
    assert found.recommend(["7"], k=3).titles == [None] * 3
    assert found.titles(["7", "x"]) == [None, None]
    assert sorted(found.recommend([], k=12).items) == sorted(RAW)


def test_a_popular_run_recommends_what_was_bought_most(tmp_path):
    run = saved_run(tmp_path, pa.table({"item": RAW}), "popular")
    write_tensors(run / WEIGHTS, {"counts_V": torch.tensor([0.0, *COUNTS])})
    found = Retriever.load(run).recommend(["+7", "ä,ö"], k=12)
    assert found.items == [raw for raw in BY_COUNT if raw not in ("+7", "ä,ö")]
    assert found.scores[:3] == [12, 11, 8]
    assert found.fallback is None


def test_an_item_knn_run_recommends_what_followed(tmp_path):
    found = Retriever.load(saved_run(tmp_path, pa.table({"item": RAW}), "item_knn"))
    assert found.recommend(["007"], k=3).items == ["+7", "ä,ö", ""]
    assert found.recommend(["007"], k=3).scores == [1.0, 0.5, 0.25]


def test_threads_that_share_a_retriever_get_what_they_would_get_alone(retriever: Retriever):
    random = np.random.default_rng(0)
    histories: list[list[Any]] = [
        random.choice(RAW, size=random.integers(0, 9)).tolist() for _ in range(200)
    ]
    alone = [retriever.recommend(history, k=5) for history in histories]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda history: retriever.recommend(history, k=5), histories)) == alone


def test_recommending_changes_neither_the_retriever_nor_the_history(retriever):
    history, exclude = ["7", "x", "+7"], ["null"]
    first = retriever.recommend(history, exclude=exclude), retriever.recommend([])
    assert (history, exclude) == (["7", "x", "+7"], ["null"])
    retriever.recommend(RAW[:8], k=12, exclude=RAW[8:])
    retriever.recommend([], exclude=RAW)
    assert (retriever.recommend(history, exclude=exclude), retriever.recommend([])) == first


def test_threads_of_torch_are_set_where_asked_for(run):
    Retriever.load(run, threads=2)
    assert torch.get_num_threads() == 2
    Retriever.load(run)
    assert torch.get_num_threads() == 2


@torch.no_grad()
def test_times_go_with_the_known_items_of_their_history(tmp_path: Path):
    table = pa.table({"item": RAW, "count": COUNTS})
    retriever = Retriever.load(saved_run(tmp_path / "run", table, "hstu_rec"))
    history, times = ["007", "none such", "7", "+7"], [10, 50, 400, 90_000]
    batch = Batch(torch.tensor([[1, 7, 2]]), torch.tensor([3]), torch.tensor([[10, 400, 90_000]]))
    expected_V = retriever.model.scorer()(batch)[0, 1:].sort(descending=True).values
    found = retriever.recommend(history, 12, times=times, exclude_seen=False)
    torch.testing.assert_close(torch.tensor(found.scores), expected_V)
    untimed = retriever.recommend(history, 12, exclude_seen=False)
    assert found.scores != untimed.scores
    long, moments = history[:1] * 4 + history, list(range(4)) + times
    cut = retriever.recommend(long, 12, times=moments, exclude_seen=False)
    assert cut == retriever.recommend(long[3:], 12, times=moments[3:], exclude_seen=False)
    with pytest.raises(InputError, match="one time for each item"):
        retriever.recommend(history, times=times[:-1])


@pytest.mark.parametrize("time", ["noon", 10**30, 1.5, None, True])
def test_what_is_no_time_is_refused(retriever: Retriever, time: Any):
    with pytest.raises(InputError, match="a time"):
        retriever.recommend(["007"], times=[time])
    if time is not None:
        with pytest.raises(InputError, match="a time"):
            retriever.update(retriever.init_state(), "007", time=time)


def test_times_mean_nothing_to_a_model_that_was_trained_without(tmp_path: Path):
    table = pa.table({"item": RAW, "count": COUNTS})
    run = saved_run(tmp_path / "run", table, "hstu_rec")
    tensors = load_model(run).state_dict()
    for name, bias in tensors.items():
        if name.endswith("time_bias"):
            bias[1:] = 0  # of gaps that no training has met
    write_tensors(run / WEIGHTS, tensors)
    retriever, history, times = Retriever.load(run), ["007", "7", "+7"], [0, 3600, 90_000]
    assert retriever.recommend(history, times=times) == retriever.recommend(history)
    timed = plain = retriever.init_state()
    for event, time in zip(history, times, strict=True):
        timed = retriever.update(timed, event, time=time)
        plain = retriever.update(plain, event)
    found, wanted = (retriever.recommend_from_state(state) for state in (timed, plain))
    assert found == wanted
