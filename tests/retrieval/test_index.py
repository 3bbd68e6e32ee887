"""FAISS indexes against exact search, and index files that do not belong to their run."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from untrained import random_model, write_run

from recsys.batch import Batch
from recsys.checkpoint import (
    load_model,
    read_items,
)
from recsys.errors import InputError, WorkError
from recsys.retrieval import Retriever
from recsys.retrieval.faiss_index import (
    KINDS,
    LISTED,
    ROUNDED,
    Index,
    build_index,
    exact_items,
    map_index,
    placed,
    recall,
    write_index,
)
from recsys.retrieval.index import (
    FACTS,
    INDEX,
    build_run_index,
    chosen_kind,
    load_index,
)
from recsys.retrieval.snapshot import Snapshot

EXACT_SCORES = [kind for kind in KINDS if kind not in ROUNDED]
TABLES = ["gaussian", "clustered", "norms"]


def table(name: str, items: int, dim: int = 16) -> np.ndarray:
    """float32 [items, dim]: even, in 20 clusters, or with norms from 0.2 to 5."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(items, dim))
    if name == "clustered":
        vectors = 3 * random.normal(size=(20, dim))[np.arange(items) % 20] + 0.3 * vectors
    if name == "norms":
        vectors *= np.geomspace(0.2, 5, items)[random.permutation(items)][:, None]
    return vectors.astype(np.float32)


def queries(vectors: np.ndarray, number: int = 100) -> np.ndarray:
    random = np.random.default_rng(1)
    near = vectors[random.integers(len(vectors), size=number)]
    return (near + random.normal(size=near.shape)).astype(np.float32)


def saved_run(run: Path, items: int = 40, name: str = "sasrec", seed: int = 0) -> Path:
    settings = {"dim": 8, "max_len": 4} if name == "sasrec" else {}
    catalogue = pa.table({"item": [f"i{item}" for item in range(1, items + 1)]})
    return write_run(run, random_model(name, settings, items, seed), name, settings, catalogue)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(kind, folder, items=40) -> the folder, made a run with an index, which is built once."""

    @cache
    def built(kind: str, items: int) -> Path:
        run = saved_run(tmp_path_factory.mktemp(f"{kind}-{items}"), items)
        build_run_index(run, kind)
        return run

    def copied(kind: str, run: Path, items: int = 40) -> Path:
        return Path(shutil.copytree(built(kind, items), run, dirs_exist_ok=True))

    return copied


def both(run: Path, kind: str) -> tuple[Retriever, Retriever]:
    """(exact, through an index of a kind)."""
    build_run_index(run, kind)
    return Retriever.load(run, index="exact"), Retriever.load(run, index="index")


def some_histories(items: int, number: int = 30) -> list[list[str]]:
    random = np.random.default_rng(2)
    lengths = random.integers(1, 9, number)
    return [[f"i{item}" for item in random.integers(1, items + 1, size)] for size in lengths]


@pytest.mark.parametrize("name", TABLES)
def test_flat_index_equals_exact_to_the_last_item(name):
    vectors = table(name, 300)
    query = queries(vectors)
    exact = query.astype(np.float64) @ vectors.T.astype(np.float64)
    found, scores = build_index(vectors, "flat").search(query, 300)
    assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(1, 301), (len(query), 1)))
    np.testing.assert_allclose(np.take_along_axis(exact, found - 1, 1), scores, atol=1e-3)
    np.testing.assert_allclose(-np.sort(-exact, axis=1), scores, atol=1e-3)


def test_ties_in_a_flat_index_hide_no_better_item():
    vectors = np.random.default_rng(0).integers(-1, 2, size=(200, 4)).astype(np.float32)
    query = np.random.default_rng(1).integers(-2, 3, size=(20, 4)).astype(np.float32)
    found, scores = build_index(vectors, "flat").search(query, 25)
    exact = query @ vectors.T
    assert np.array_equal(scores, -np.sort(-exact, axis=1)[:, :25])
    assert np.array_equal(scores, np.take_along_axis(exact, found - 1, 1))
    assert all(len(set(row)) == 25 for row in found.tolist())


@pytest.mark.parametrize(
    ("name", "least"), [("gaussian", 0.99), ("clustered", 0.99), ("norms", 0.99)]
)
def test_hnsw_finds_nearly_all_of_the_exact_ten(name, least):
    vectors = table(name, 2000)
    query = queries(vectors)
    exact = np.argsort(-(query @ vectors.T), axis=1)[:, :10] + 1
    found, _ = build_index(vectors, "hnsw").search(query, 10)
    hits = [len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)]
    assert np.mean(hits) / 10 > least


def test_a_few_very_long_items_do_not_blind_hnsw():
    vectors = table("gaussian", 4000)
    vectors[::400] *= 10
    asked = queries(vectors)
    assert (
        recall(build_index(vectors, "hnsw").search(asked, 10)[0], exact_items(vectors, asked, 10))
        > 0.97
    )


@pytest.mark.parametrize("kind", LISTED)
@pytest.mark.parametrize("name", TABLES)
def test_lists_find_nearly_all_of_the_exact_ten_without_reading_all_items(name, kind):
    vectors = table(name, 4000)
    asked = queries(vectors, 400)
    index = build_index(vectors, kind, queries_QD=asked[:200])
    assert recall(index.search(asked[200:], 10)[0], exact_items(vectors, asked[200:], 10)) > 0.92
    assert 1 <= index.nprobe < index.faiss_index.nlist


def test_as_few_lists_are_read_as_reach_the_recall():
    # Twenty far clusters: one list holds all that is near, and spread-out items need many.
    far = 100 * table("clustered", 4000)
    near = far + table("gaussian", 4000)
    spread = table("gaussian", 4000)
    few = build_index(near, "ivf", queries_QD=near[::20]).nprobe
    assert few < build_index(spread, "ivf", queries_QD=spread[::20]).nprobe


def test_exact_items_and_recall_are_what_a_plain_sort_says():
    vectors, asked = table("norms", 200), queries(table("norms", 200), 33)
    order = np.argsort(-(asked.astype(np.float64) @ vectors.T), axis=1) + 1
    assert np.array_equal(exact_items(vectors, asked, 10), order[:, :10])
    assert recall(order[:, 5:15], order[:, :10]) == 0.5
    assert recall(order[:, 9::-1], order[:, :10]) == 1
    assert recall(np.zeros((33, 10), np.int64), order[:, :10]) == 0


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("name", TABLES)
def test_scoring_again_with_exact_vectors_finds_more(name, kind):
    vectors = table(name, 2000)
    asked = queries(vectors)
    exact = exact_items(vectors, asked, 10)
    index = build_index(vectors, kind)
    rounded = replace(index, vectors=None)
    estimated, _ = rounded.search(asked, 10)
    found, _ = index.search(asked, 10)
    assert 0.5 < recall(estimated, exact) <= recall(found, exact)
    # A byte is fine enough for ten of these few items, half a byte is not.
    assert kind == "sq" or recall(estimated, exact) < recall(found, exact) - 0.02
    # Half a byte a coordinate leaves about a sixteenth of the spread as error.
    everything, scores = rounded.search(asked, 2000)
    products = np.einsum("bd,bkd->bk", asked, vectors[everything - 1])
    assert np.abs(scores - products).mean() < products.std() / 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 7])
def test_an_odd_number_of_axes_is_no_hindrance(tmp_path, kind, dim):
    vectors = table("gaussian", 300, dim)
    index = build_index(vectors, kind)
    write_index(tmp_path / INDEX, index)
    loaded = replace(index, faiss_index=map_index(tmp_path / INDEX, kind, 300, dim))
    for one in (index, loaded):
        assert recall(one.search(vectors, 300)[0], exact_items(vectors, vectors, 300)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_vectors_give_the_same_index(tmp_path, kind):
    vectors = table("clustered", 1000)
    files = []
    for name in ("one", "two"):
        write_index(tmp_path / name, index := build_index(vectors, kind))
        files.append(((tmp_path / name).read_bytes(), index.nprobe))
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused_by_item(kind, wrong):
    vectors = table("gaussian", 50)
    vectors[[16, 40], 3] = wrong
    with pytest.raises(InputError, match=r"vector of item 17 holds NaN or infinity \(2 such"):
        build_index(vectors, kind)


def test_no_items_are_refused():
    with pytest.raises(InputError, match="no items"):
        build_index(np.zeros((0, 8), np.float32), "flat")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("less", [0, 1, 5, 900])
def test_rows_are_never_short_however_many_are_asked_for(kind, less):
    vectors = table("clustered", 1000)
    index = build_index(vectors, kind)
    found, _ = replace(index, nprobe=min(index.nprobe, 1)).search(queries(vectors, 20), 1000 - less)
    assert found.min() >= 1
    assert all(len(set(row)) == 1000 - less for row in found.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_that_is_no_number_finds_nothing_and_harms_no_other_row(kind):
    vectors = table("gaussian", 500)
    asked = queries(vectors, 3)
    broken = asked.copy()
    broken[1] = np.nan
    index = build_index(vectors, kind)
    wanted, _ = index.search(asked, 10)
    found, scores = index.search(broken, 10)
    assert np.array_equal(found[[0, 2]], wanted[[0, 2]])
    assert (np.isneginf(scores) == (found == 0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_an_index(kind):
    vectors = table("clustered", 1000)
    index, asked = build_index(vectors, kind), queries(vectors, 40)
    sizes = [1, 5, 50, 1000] * 5
    wanted = {k: index.search(asked, k) for k in set(sizes)}
    with ThreadPoolExecutor(8) as pool:
        for k, found in zip(sizes, pool.map(lambda k: index.search(asked, k), sizes), strict=True):
            assert np.array_equal(found[0], wanted[k][0])
            assert np.array_equal(found[1], wanted[k][1])


def test_searching_takes_one_thread_and_leaves_all_settings_as_they_were():
    import faiss

    vectors = table("gaussian", 500)
    index = build_index(vectors, "hnsw")

    @dataclass(frozen=True)
    class Watched:
        faiss_index: Any
        counted: list[int]
        storage: Any = index.faiss_index.storage

        @property
        def ntotal(self) -> int:
            self.counted.append(faiss.omp_get_max_threads())
            return self.faiss_index.ntotal

        def __getattr__(self, name: str) -> Any:
            return getattr(self.faiss_index, name)

    def use(threads: int, counts: list[int]) -> None:
        watched = Watched(index.faiss_index, counts)
        replace(index, faiss_index=watched).search(queries(vectors), 2, threads=threads)

    def others() -> tuple[int, int]:
        return torch.get_num_threads(), faiss.omp_get_max_threads()

    before, counts = others(), ([], [], [])
    use(1, counts[0])
    use(3, counts[1])
    assert others() == before
    thread = threading.Thread(target=use, args=(2, counts[2]))
    thread.start()
    thread.join()
    assert others() == before
    assert [row[-1] for row in counts] == [1, 3, 2]


@pytest.mark.parametrize("name", TABLES)
def test_hnsw_reaches_every_item(name):
    vectors = table(name, 2000)
    found, _ = build_index(vectors, "hnsw").search(queries(vectors, 10), 2000)
    assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(1, 2001), (10, 1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TABLES)
def test_scores_are_inner_products_best_first(name, kind):
    vectors = table(name, 500)
    query = queries(vectors)
    found, scores = build_index(vectors, kind).search(query, 50)
    assert (found.dtype, scores.dtype) == (np.int64, np.float32)
    assert found.min() >= 1
    products = np.einsum("bd,bkd->bk", query, vectors[found - 1])
    np.testing.assert_allclose(scores, products, rtol=1e-4, atol=1e-3)
    assert (np.diff(scores, axis=1) <= 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_are_is_all_there_are(kind):
    vectors = table("gaussian", 30)
    found, scores = build_index(vectors, kind).search(queries(vectors), 1000)
    assert (np.sort(found, axis=1) == np.arange(1, 31)).all()
    assert scores.shape == found.shape


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_one_item_finds_it(kind):
    vectors = table("gaussian", 1)
    found, _ = build_index(vectors, kind).search(queries(vectors, 3), 10)
    assert found.tolist() == [[1], [1], [1]]


def test_building_does_not_change_the_vectors():
    vectors = table("norms", 50)
    before = vectors.copy()
    for kind in KINDS:
        build_index(vectors, kind)
    assert np.array_equal(vectors, before)


@pytest.mark.parametrize(("kind", "meant"), [("hsnw", "hnsw"), ("flatt", "flat")])
def test_an_unknown_type_is_refused_with_the_nearest_one(tmp_path, kind, meant):
    wanted = rf"unknown index type '{kind}'; did you mean '{meant}'\? \(types: "
    with pytest.raises(InputError, match=wanted + r"flat, hnsw, ivf, ivfpq, sq\)"):
        build_index(table("gaussian", 5), kind)
    with pytest.raises(InputError, match=wanted + r"auto, flat, hnsw, ivf, ivfpq, sq\)"):
        build_run_index(saved_run(tmp_path), kind)
    assert not (tmp_path / INDEX).exists()


@pytest.mark.parametrize("name", ["popular", "item_knn"])
def test_a_model_without_item_vectors_has_nothing_to_index(tmp_path, name):
    with pytest.raises(InputError, match="without item vectors"):
        build_run_index(saved_run(tmp_path, name=name), "flat")
    assert not (tmp_path / INDEX).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_of_a_run_index_are_measured(tmp_path, kind):
    facts = build_run_index(saved_run(tmp_path), kind)
    names = {"kind", "items", "dim", "seconds", "recall@10", "p50_ms", "p99_ms", "mb"}
    assert set(facts) == names
    assert (facts["kind"], facts["items"], facts["dim"]) == (kind, 40, 8)
    assert facts["recall@10"] == 1.0
    assert facts["seconds"] >= 0
    assert 0 < facts["p50_ms"] <= facts["p99_ms"]
    assert facts["mb"] == pytest.approx((tmp_path / INDEX).stat().st_size / 1e6, abs=1e-3)


@pytest.mark.parametrize(
    ("items", "kind"),
    [
        (1, "flat"),
        (199_999, "flat"),
        (200_000, "hnsw"),
        (3_999_999, "hnsw"),
        (4_000_000, "ivfpq"),
        (50_000_000, "ivfpq"),
    ],
)
def test_auto_goes_by_size_and_says_so(items, kind):
    chosen, why = chosen_kind(items)
    assert chosen == kind
    assert f"{items:,} items" in why


def test_auto_builds_the_kind_it_chose(tmp_path):
    facts = build_run_index(saved_run(tmp_path), "auto")
    assert (facts["kind"], facts["why"]) == chosen_kind(40)
    assert load_index(tmp_path).kind == "flat"


def test_recall_is_that_of_the_index_itself(tmp_path, monkeypatch):
    # An index of the items in reverse order finds the ten best of 20 items by luck alone.
    def reversed_index(vectors: np.ndarray, kind: str, **tuning: Any) -> Index:
        return build_index(vectors[::-1], kind, **tuning)

    monkeypatch.setattr("recsys.retrieval.index.build_index", reversed_index)
    assert build_run_index(saved_run(tmp_path, 20), "flat")["recall@10"] < 0.8


def test_a_catalogue_smaller_than_ten_is_found_whole(tmp_path):
    assert build_run_index(saved_run(tmp_path, 3), "hnsw")["recall@10"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_answers_like_the_one_that_was_built(tmp_path, kind):
    run = saved_run(tmp_path)
    with torch.no_grad():
        vectors = load_model(run).item_vectors()[1:].numpy()
    build_run_index(run, kind)
    loaded, built = load_index(run, vectors=vectors), build_index(vectors, kind)
    for found, wanted in zip(
        loaded.search(queries(vectors), 10), built.search(queries(vectors), 10), strict=True
    ):
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", LISTED)
@pytest.mark.parametrize("nprobe", [0, -1, 1.5, True, "3", None, 10**6])
def test_lists_to_read_that_cannot_be_are_refused(tmp_path, indexed, kind, nprobe):
    indexed(kind, tmp_path, items=200)
    path = tmp_path / FACTS
    facts = json.loads(path.read_text())
    assert load_index(tmp_path).nprobe == facts["nprobe"]
    path.write_text(json.dumps({**facts, "nprobe": nprobe}))
    with pytest.raises(InputError, match=f"{FACTS} is damaged.*recsys index"):
        load_index(tmp_path)


def test_vectors_of_other_items_are_refused(tmp_path):
    build_run_index(saved_run(tmp_path), "ivfpq")
    for shape in ((41, 8), (40, 9), (40,)):
        with pytest.raises(InputError, match=r"is over \[40, 8\]"):
            load_index(tmp_path, vectors=np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_facts_of_another_kind_are_refused(tmp_path, indexed, kind, other):
    indexed(kind, tmp_path)
    path = tmp_path / FACTS
    path.write_text(json.dumps({"nprobe": 1, **json.loads(path.read_text()), "kind": other}))
    if other == kind:
        assert load_index(tmp_path).kind == kind
    else:
        with pytest.raises(InputError, match=f"damaged: .*--type {other}` again"):
            load_index(tmp_path)


def test_a_file_that_is_no_index_is_refused_though_its_sum_is_right(tmp_path):
    build_run_index(saved_run(tmp_path), "flat")
    (tmp_path / INDEX).write_bytes(b"no index at all")
    facts = json.loads((tmp_path / FACTS).read_text())
    facts["index_sha256"] = hashlib.sha256(b"no index at all").hexdigest()
    (tmp_path / FACTS).write_text(json.dumps(facts))
    with pytest.raises(InputError, match="no index can be read"):
        load_index(tmp_path)


def test_a_run_without_an_index_is_served_without_and_refused_through_it(tmp_path):
    saved_run(tmp_path)
    with pytest.raises(InputError, match="has no index: build one with `recsys index"):
        load_index(tmp_path)
    with pytest.raises(InputError, match="has no index"):
        Retriever.load(tmp_path, index="index")
    assert len(Retriever.load(tmp_path).recommend(["i1"]).items) == 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other"])
def test_a_damaged_index_is_refused_before_it_is_parsed(tmp_path, indexed, kind, damage):
    indexed(kind, tmp_path)
    whole = bytearray((tmp_path / INDEX).read_bytes())
    flipped = whole.copy()
    flipped[len(whole) // 2] ^= 1
    broken = {"cut": whole[:-1], "empty": b"", "flipped": flipped, "other": b"no index at all"}
    (tmp_path / INDEX).write_bytes(broken[damage])
    with pytest.raises(InputError, match=f"{INDEX} is damaged; run `recsys index .* {kind}` again"):
        load_index(tmp_path)


def test_an_index_of_other_weights_is_refused(tmp_path):
    build_run_index(saved_run(tmp_path), "hnsw")
    saved_run(tmp_path, seed=1)
    with pytest.raises(InputError, match=r"built for other weights .*--type hnsw` again"):
        load_index(tmp_path)
    build_run_index(tmp_path, "hnsw")
    assert load_index(tmp_path).kind == "hnsw"


def changed(**values: Any) -> Callable[[dict[str, Any]], str]:
    return lambda facts: json.dumps({**facts, **values})


DAMAGES: dict[str, Callable[[dict[str, Any]], str]] = {
    "empty": lambda facts: "",
    "cut": lambda facts: json.dumps(facts)[:-5],
    "list": lambda facts: "[]",
    "null": lambda facts: "null",
    "nothing": lambda facts: "{}",
    "unknown kind": changed(kind="tree"),
    "kind that is no word": changed(kind=["flat"]),
    "other kind": changed(kind="hnsw"),
    "dim that is no number": changed(dim="many"),
    "other dim": changed(dim=3),
    "other items": changed(items=39),
    "no items": changed(items=0),
    "no dim": lambda facts: json.dumps({name: facts[name] for name in facts if name != "dim"}),
    "no sum": changed(index_sha256=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_facts_are_refused(tmp_path, indexed, damage):
    indexed("flat", tmp_path)
    path = tmp_path / FACTS
    path.write_text(DAMAGES[damage](json.loads(path.read_text())))
    with pytest.raises(InputError, match="is damaged"):
        load_index(tmp_path)


def test_missing_facts_are_refused(tmp_path):
    build_run_index(saved_run(tmp_path), "flat")
    (tmp_path / FACTS).unlink()
    with pytest.raises(InputError, match=FACTS):
        load_index(tmp_path)


def test_an_index_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    import faiss

    def broken(*arguments: Any) -> None:
        raise KeyboardInterrupt

    run = saved_run(tmp_path)
    before = set(os.listdir(run))
    with monkeypatch.context() as patch:
        for name in ("write_index", "serialize_index"):
            patch.setattr(faiss, name, broken)
        with pytest.raises(KeyboardInterrupt):
            build_run_index(run, "flat")
        assert set(os.listdir(run)) == before
    build_run_index(run, "flat")
    assert set(os.listdir(run)) == before | {INDEX, FACTS}
    whole = (run / INDEX).read_bytes()
    with monkeypatch.context() as patch:
        for name in ("write_index", "serialize_index"):
            patch.setattr(faiss, name, broken)
        with pytest.raises(KeyboardInterrupt):
            build_run_index(run, "hnsw")
    assert (run / INDEX).read_bytes() == whole
    assert load_index(run).kind == "flat"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
@pytest.mark.parametrize("items", [5, 3000])
def test_a_full_disk_is_reported_and_leaves_no_index(tmp_path, monkeypatch, items):
    def refuse(source: Any, target: Any) -> None:
        raise AssertionError(f"half an index was put in place as {target}")

    run = saved_run(tmp_path, items)
    (run / f"{INDEX}.part").symlink_to("/dev/full")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WorkError, match=f"no space left to write .*{INDEX}"):
        build_run_index(run, "flat")
    assert not (run / INDEX).exists()


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("exclude", [[], [f"i{item}" for item in range(1, 200, 3)]])
def test_recommending_through_a_flat_index_equals_exact(tmp_path, exclude, exclude_seen):
    exact, through = both(saved_run(tmp_path, 200), "flat")
    options = {"exclude": exclude, "exclude_seen": exclude_seen}
    for k in (1, 10, 200):
        wanted = exact.recommend_batch(some_histories(200), k, **options)
        found = through.recommend_batch(some_histories(200), k, **options)
        for one, other in zip(found, wanted, strict=True):
            assert one.items == other.items
            assert one.scores == pytest.approx(other.scores, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", EXACT_SCORES)
@pytest.mark.parametrize("left", [3, 10, 40])
def test_however_many_are_excluded_k_items_come_back(tmp_path, kind, left):
    exact, through = both(saved_run(tmp_path, 1500), kind)
    # What is left are the items that exact search likes least: an index meets them last.
    liking = exact.recommend(["i7"], k=1500, exclude_seen=False).items
    hidden = liking[:-left]
    found = through.recommend(["i7"], k=10, exclude=hidden, exclude_seen=False)
    wanted = exact.recommend(["i7"], k=10, exclude=hidden, exclude_seen=False)
    assert found.items == wanted.items
    assert len(found.items) == min(10, left)


@pytest.mark.parametrize("kind", EXACT_SCORES)
def test_rows_of_a_batch_hide_their_own_items_only(tmp_path, kind):
    run = saved_run(tmp_path, 60)
    exact, through = both(run, kind)
    batch = Batch(torch.tensor([[1], [1], [1]]), torch.ones(3, dtype=torch.int64))
    best, _ = exact.recommend_items(batch, 60)
    hidden = torch.tensor([1] * 50 + [2] * 5), torch.tensor([*best[0, :50], *best[0, :5]])
    found, _ = through.recommend_items(batch, 10, seen=hidden)
    assert found.tolist() == [best[0, :10].tolist(), best[0, 50:].tolist(), best[0, 5:15].tolist()]


@dataclass(frozen=True)
class Lazy:
    """Looks for every second of the items that it is asked for."""

    index: Any
    version: str | None = None

    def search(self, query_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found, scores = self.index.search(query_BD, k)
        found[:, found.shape[1] // 2 :] = 0
        return found, scores


def test_an_index_that_comes_back_short_is_asked_for_more(tmp_path):
    run = saved_run(tmp_path, 60)
    exact, _ = both(run, "flat")
    lazy = Retriever(Snapshot(load_model(run), read_items(run), Lazy(load_index(run)), "cpu"))
    for k in (1, 10):
        wanted = exact.recommend_batch(some_histories(60), k)
        found = lazy.recommend_batch(some_histories(60), k)
        assert [one.items for one in found] == [one.items for one in wanted]


def test_places_without_an_item_hold_zero_and_no_score(tmp_path):
    exact, through = both(saved_run(tmp_path, 5), "flat")
    batch = Batch(torch.tensor([[1]]), torch.tensor([1]))
    hidden = torch.tensor([0, 0, 0]), torch.tensor([2, 3, 4])
    for retriever in (exact, through):
        items, scores = retriever.recommend_items(batch, 5, seen=hidden)
        assert sorted(items[0, :2].tolist()) == [1, 5]
        assert items[0, 2:].tolist() == [0, 0, 0]
        assert np.isneginf(scores[0, 2:]).all()


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq", "sq", "hnsw"])
def test_an_index_goes_to_the_device_where_faiss_searches_there(monkeypatch, kind):
    import faiss

    vectors = table("gaussian", 500)
    index = build_index(vectors, kind)
    assert placed(index, "cuda:1") is index  # the FAISS of the tests knows no GPU
    moves: list[int] = []

    def move(resources: object, device: int, cpu_index: Any) -> Any:
        moves.append(device)
        return faiss.clone_index(cpu_index)

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    assert placed(index, "cpu") is index
    moved = placed(index, "cuda:1")
    assert moves == ([] if kind == "hnsw" else [1])
    for one, other in zip(
        moved.search(queries(vectors), 10), index.search(queries(vectors), 10), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_an_index_that_the_device_does_not_take_is_named(monkeypatch):
    import faiss

    def refuse(*args: object) -> None:
        raise RuntimeError("codes of 25 bytes")

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", refuse, raising=False)
    with pytest.raises(InputError, match="this ivfpq index on cuda: codes of 25 bytes"):
        placed(build_index(table("gaussian", 500), "ivfpq"), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq", "sq"])
def test_a_gpu_finds_what_the_cpu_finds(kind):
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS was not built for GPUs")
    vectors = table("gaussian", 5000, 64)
    index = build_index(vectors, kind)
    found, _ = placed(index, "cuda").search(queries(vectors), 10)
    wanted, _ = index.search(queries(vectors), 10)
    assert recall(found, wanted) > 0.98
