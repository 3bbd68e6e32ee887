"""Numbers of run folders against a plain walk over users, items and definitions."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.batch import Batch
from recsys.checkpoint import CONFIG, METRICS, load_model, read_items, read_json, write_json
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError
from recsys.eval.report import DEFAULT_KS, compare_runs, evaluate_run
from recsys.retrieval.index import build_run_index
from recsys.run import prepare, train

USERS, ITEMS, DAY = 50, 20, 86_400
FIRST_DAY = 1_700_006_400
SMALL = {"model.dim": 8, "model.max_len": 6, "trainer.epochs": 2, "trainer.batch_size": 16}
GLOBAL_TIME = {"split.kind": "global_time"}
KS = (1, 5, 10)
Log = list[tuple[str, int, int]]
"""(user, item, time), oldest first."""
Question = tuple[str, list[int], int]
"""(user, history, target)."""
Scores = Callable[[list[int]], dict[int, float]]
"""History -> item -> score."""


def random_log(seed: int = 0) -> Log:
    """60 days of a store in which people mostly go on to the next item, and return to old ones."""
    random = np.random.default_rng(seed)
    at = random.integers(ITEMS, size=USERS)
    activity = random.pareto(1.0, USERS) + 0.2
    log = []
    for number in range(600):
        user = random.choice(USERS, p=activity / activity.sum())
        at[user] = (at[user] + 1) % ITEMS if random.random() < 0.5 else random.integers(ITEMS)
        log.append((f"u{user}", int(at[user]), FIRST_DAY + number * DAY // 10))
    return log


def prepared(log: Log, folder: Path, timed: bool = True) -> Path:
    users, items, times = zip(*log, strict=True)
    columns = {"user": users, "item": items} | ({"time": times} if timed else {})
    prepare(pa.table(columns), folder)
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `data` and a run of each kind, named after it."""
    folder = tmp_path_factory.mktemp("shop")
    data = prepared(random_log(), folder / "data")
    for name in ("sasrec", "popular", "item_knn"):
        train(data, name, folder / name, settings=SMALL if name == "sasrec" else {})
    train(data, "item_knn", folder / "refit", refit=True)
    train(data, "item_knn", folder / "time", settings=GLOBAL_TIME)
    build_run_index(folder / "sasrec", "flat")
    return folder


def histories(log: Log) -> dict[str, list[tuple[int, int]]]:
    """(item, time) of each user."""
    found: dict[str, list[tuple[int, int]]] = {}
    for user, item, time in log:
        found.setdefault(user, []).append((item, time))
    return found


def held_out(log: Log, back: int) -> Iterator[Question]:
    """Leave one out: the target stands `back` places from the end."""
    for user, events in histories(log).items():
        items = [item for item, _ in events]
        if len(items) >= 3:
            yield user, items[:-back], items[-back]


def learned_from(log: Log, refit: bool = False) -> list[list[tuple[int, int]]]:
    """Leave one out: what trains of each user, (item, time)."""
    back = 1 if refit else 2
    return [events[:-back] if len(events) >= 3 else events for events in histories(log).values()]


def model_scores(run: Path) -> Scores:
    """What a saved model says of one history at a time."""
    raw = read_items(run)["item"].to_pylist()
    number = {item: place for place, item in enumerate(raw, start=1)}
    model = load_model(run)

    @torch.no_grad()
    def score(history: list[int]) -> dict[int, float]:
        cut = [number[item] for item in history][-model.max_len :]
        scores = model.scorer()(Batch(torch.tensor([cut]), torch.tensor([len(cut)])))[0]
        return dict(zip(raw, scores[1:].tolist(), strict=True))

    return score


def popular_scores(learned: list[list[tuple[int, int]]], days: float = math.inf) -> Scores:
    newest = max(time for events in learned for _, time in events)
    near = [item for events in learned for item, time in events if newest - time <= days * DAY]
    return lambda history: {item: near.count(item) for item in range(ITEMS)}


def following_scores(learned: list[list[tuple[int, int]]]) -> Scores:
    """Pairs up to five places apart, halved with each place; so are the last five items."""
    weight = np.zeros((ITEMS, ITEMS))
    for events in learned:
        items = [item for item, _ in events]
        for place, item in enumerate(items):
            for distance, later in enumerate(items[place + 1 : place + 6]):
                if later != item:
                    weight[item, later] += 0.5**distance

    def score(history: list[int]) -> dict[int, float]:
        last = enumerate(history[:-6:-1])
        return dict(enumerate(sum(0.5**distance * weight[item] for distance, item in last)))

    return score


def ranks_by_hand(score: Scores, questions: list[Question], seen: str) -> list[int]:
    """How many other items score as high as the target, one question after the other."""
    ranks = []
    for _, history, target in questions:
        scores = score(history)
        if seen == "mask":
            scores |= dict.fromkeys(history, -math.inf)
        ranks.append(sum(scores[item] >= scores[target] for item in scores if item != target))
    return ranks


def metrics_by_hand(ranks: list[int]) -> dict[str, float]:
    found = {}
    for k in KS:
        near = [rank for rank in ranks if rank < k]
        found[f"hr@{k}"] = len(near) / len(ranks)
        found[f"ndcg@{k}"] = sum(1 / math.log2(rank + 2) for rank in near) / len(ranks)
        found[f"mrr@{k}"] = sum(1 / (rank + 1) for rank in near) / len(ranks)
    return found


def values(result: dict[str, Any]) -> dict[str, float]:
    return {name: found["value"] for name, found in result["metrics"].items()}


def test_a_result_has_the_keys_that_are_promised(shop):
    result = json.loads(json.dumps(evaluate_run(shop / "sasrec"), allow_nan=False))
    dataset = SequenceDataset.load(shop / "data")
    assert result["data"] == {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "users": len(histories(random_log())),
        "items": ITEMS,
        "interactions": 600,
    }
    assert (result["split"]["kind"], result["split"]["part"]) == ("leave_one_out", "test")
    assert {name: result["protocol"][name] for name in ("ranking", "ties", "seen", "refit")} == {
        "ranking": "full",
        "ties": "against",
        "seen": "mask",
        "refit": False,
    }
    assert result["users"] == result["targets"] == len(list(held_out(random_log(), 1)))
    assert result["split"]["users_train_only"] == result["data"]["users"] - result["users"] > 0
    assert result["model"] == "sasrec"
    assert result["seconds"] > 0
    assert list(result["metrics"]) == [
        f"{name}@{k}" for k in DEFAULT_KS for name in ("hr", "ndcg", "mrr")
    ]
    for name, found in result["metrics"].items():
        assert set(found) == {"value", "ci95"}
        low, high = found["ci95"]
        assert 0 <= low <= found["value"] <= high <= 1
        assert low < high or name == "hr@20"  # of 20 items


def test_a_training_ends_with_what_evaluating_its_run_says(shop):
    for name in ("sasrec", "popular", "refit", "time"):
        stored, found = read_json(shop / name / METRICS), evaluate_run(shop / name)
        assert stored.pop("seconds") > 0
        assert found.pop("seconds") > 0
        assert stored == found


@pytest.mark.parametrize("seen", ["mask", "keep"])
@pytest.mark.parametrize(("part", "back"), [("valid", 2), ("test", 1)])
@pytest.mark.parametrize("name", ["sasrec", "popular", "item_knn"])
def test_metrics_equal_those_computed_by_hand(shop, name, part, back, seen):
    questions = list(held_out(random_log(), back))
    result = evaluate_run(shop / name, part, KS, seen)
    wanted = metrics_by_hand(ranks_by_hand(model_scores(shop / name), questions, seen))
    assert values(result) == pytest.approx(wanted)
    assert (result["split"]["part"], result["protocol"]["seen"]) == (part, seen)


@pytest.mark.parametrize("target", ["last", "first", "successive"])
@pytest.mark.parametrize("part", ["valid", "test"])
def test_under_global_time_the_questions_lie_in_the_window(shop, tmp_path, part, target):
    # 600 interactions, one after the other: the first 480 train, 60 validate, 60 test.
    log = random_log()
    low, high = (480, 540) if part == "valid" else (540, 600)
    questions: list[Question] = []
    for user, events in histories(log).items():
        first, last = log[low][2], log[high - 1][2]
        inside = [place for place, (_, time) in enumerate(events) if first <= time <= last]
        asked = {"last": inside[-1:], "first": inside[:1], "successive": inside}[target]
        items = [item for item, _ in events]
        questions += [(user, items[:place], items[place]) for place in asked if place]
    run = train(
        shop / "data", "popular", tmp_path / "run", settings={**GLOBAL_TIME, "split.target": target}
    )
    result = evaluate_run(run, part, KS)
    assert values(result) == pytest.approx(
        metrics_by_hand(ranks_by_hand(model_scores(run), questions, "mask"))
    )
    assert result["targets"] == len(questions)
    assert result["users"] == len({user for user, _, _ in questions})
    assert (result["split"]["kind"], result["split"]["target"]) == ("global_time", target)


def test_a_refitted_run_is_not_asked_about_what_it_has_learned(shop):
    with pytest.raises(InputError, match=r"refitted on train and valid .* only --split test"):
        evaluate_run(shop / "refit", "valid")
    assert evaluate_run(shop / "refit")["protocol"]["refit"] is True


@pytest.mark.parametrize("seen", ["mask", "keep"])
def test_through_a_flat_index_the_numbers_are_the_same(shop, seen):
    exact = evaluate_run(shop / "sasrec", "test", KS, seen)
    found = evaluate_run(shop / "sasrec", "test", KS, seen, "index")
    assert values(found) == pytest.approx(values(exact))
    assert (exact["protocol"]["through"], found["protocol"]["through"]) == ("exact", "index")


def test_a_run_without_an_index_is_not_asked_through_one(shop):
    with pytest.raises(InputError, match="has no index"):
        evaluate_run(shop / "popular", through="index")


@pytest.mark.parametrize("seen", ["mask", "keep"])
@pytest.mark.parametrize(("name", "part", "back"), [("sasrec", "valid", 2), ("refit", "test", 1)])
def test_baselines_learn_from_the_same_histories_as_the_model(shop, name, part, back, seen):
    learned, questions = learned_from(random_log(), name == "refit"), held_out(random_log(), back)
    questions = list(questions)
    wanted = {
        "popular": popular_scores(learned),
        "popular, last 30 days": popular_scores(learned, days=30),
        "item_knn": following_scores(learned),
    }
    found = evaluate_run(shop / name, part, KS, seen)["baselines"]
    assert list(found) == list(wanted)
    for baseline, score in wanted.items():
        by_hand = metrics_by_hand(ranks_by_hand(score, questions, seen))
        assert found[baseline] == pytest.approx(by_hand)


def test_a_baseline_has_the_numbers_of_a_run_of_its_own(shop):
    for name in ("popular", "item_knn"):
        result = evaluate_run(shop / name)
        assert values(result) == result["baselines"][name]


def test_a_log_without_times_has_no_recent_baseline(tmp_path):
    data = prepared(random_log(), tmp_path / "data", timed=False)
    result = evaluate_run(train(data, "popular", tmp_path / "run"))
    assert list(result["baselines"]) == ["popular", "item_knn"]


def test_data_that_has_moved_is_asked_for_and_may_be_handed_in(shop, tmp_path):
    data = prepared(random_log(), tmp_path / "data")
    run = train(data, "popular", tmp_path / "run")
    shutil.move(data, tmp_path / "moved")
    with pytest.raises(InputError, match=f"no longer in {data}: name its place with --data"):
        evaluate_run(run)
    result = evaluate_run(run, dataset=SequenceDataset.load(tmp_path / "moved"))
    assert result["metrics"] == evaluate_run(shop / "popular")["metrics"]


def test_other_data_than_that_of_the_run_is_refused(shop, tmp_path):
    other = SequenceDataset.load(prepared(random_log(seed=1), tmp_path / "data"))
    with pytest.raises(InputError, match=f"was trained on .*{other.fingerprint[:12]}"):
        evaluate_run(shop / "popular", dataset=other)


def test_data_that_was_prepared_anew_in_its_old_place_is_noticed(tmp_path):
    run = train(prepared(random_log(), tmp_path / "data"), "popular", tmp_path / "run")
    prepared(random_log(seed=1), tmp_path / "data")
    with pytest.raises(InputError, match="was trained on data"):
        evaluate_run(run)


@pytest.mark.parametrize("missing", ["dataset", "split", "refit", "model"])
def test_a_config_with_a_section_missing_is_refused(shop, tmp_path, missing):
    shutil.copytree(shop / "popular", tmp_path / "run")
    config = read_json(tmp_path / "run" / CONFIG)
    del config[missing]
    write_json(tmp_path / "run" / CONFIG, config)
    with pytest.raises(InputError, match=missing):
        evaluate_run(tmp_path / "run")


@pytest.mark.parametrize("wrong", [{"part": "tset"}, {"seen": "masked"}, {"through": "faiss"}])
def test_a_word_that_means_no_protocol_is_refused(shop, wrong):
    with pytest.raises(InputError, match=next(iter(wrong.values()))):
        evaluate_run(shop / "popular", **wrong)


def test_cut_offs_are_checked_before_anything_else(tmp_path):
    for ks in ([], [0], [10, -1]):
        with pytest.raises(InputError, match="--k takes whole numbers from 1"):
            evaluate_run(tmp_path, ks=ks)


@pytest.mark.parametrize("seen", ["mask", "keep"])
def test_a_comparison_holds_the_numbers_of_each_run_and_their_differences(shop, seen):
    runs = [shop / name for name in ("popular", "sasrec", "refit")]
    found = compare_runs(runs, KS, seen)
    alone = [evaluate_run(run, "test", KS, seen) for run in runs]
    assert [row["run"] for row in found["runs"]] == [str(run) for run in runs]
    assert [row["model"] for row in found["runs"]] == ["popular", "sasrec", "item_knn"]
    assert [row["refit"] for row in found["runs"]] == [False, False, True]
    assert [row["metrics"] for row in found["runs"]] == [one["metrics"] for one in alone]
    assert "difference_to_first" not in found["runs"][0]
    for row, one in zip(found["runs"][1:], alone[1:], strict=True):
        for name, value in values(one).items():
            difference = row["difference_to_first"][name]["difference"]
            assert difference == pytest.approx(value - values(alone[0])[name])
    assert found["users"] == alone[0]["users"]
    assert found["data"]["fingerprint"] == alone[0]["data"]["fingerprint"]
    assert found["split"] == {"kind": "leave_one_out", "part": "test"}
    assert found["protocol"]["seen"] == seen
    json.dumps(found, allow_nan=False)


def test_intervals_of_differences_are_those_of_the_same_users_drawn_together(shop):
    questions = list(held_out(random_log(), 1))
    near = [
        np.array(ranks_by_hand(model_scores(shop / name), questions, "mask")) < 5
        for name in ("popular", "item_knn")
    ]
    drawn = np.random.default_rng(7).integers(len(questions), size=(4000, len(questions)))
    paired = near[1][drawn].mean(axis=1) - near[0][drawn].mean(axis=1)
    wanted = np.quantile(paired, [0.025, 0.975])
    found = compare_runs([shop / "popular", shop / "item_knn"], KS)["runs"][1]
    np.testing.assert_allclose(found["difference_to_first"]["hr@5"]["ci95"], wanted, atol=0.03)


def test_a_run_does_not_differ_from_itself(shop, tmp_path):
    shutil.copytree(shop / "sasrec", tmp_path / "copy")
    found = compare_runs([shop / "sasrec", tmp_path / "copy"], KS)["runs"][1]
    for difference in found["difference_to_first"].values():
        assert difference == {"difference": 0.0, "ci95": [0.0, 0.0]}


def test_one_run_is_not_compared(shop):
    for runs in ([], [shop / "popular"]):
        with pytest.raises(InputError, match="two runs or more"):
            compare_runs(runs)


def test_runs_on_other_data_are_not_compared(shop, tmp_path):
    data = prepared(random_log(seed=1), tmp_path / "data")
    other = train(data, "popular", tmp_path / "run")
    with pytest.raises(InputError, match=f"{other} cannot be compared .*fingerprint"):
        compare_runs([shop / "popular", other])


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({}, "split.kind"),
        ({**GLOBAL_TIME, "split.target": "first"}, "split.target"),
        ({**GLOBAL_TIME, "split.test_share": 0.2}, "split.test_share"),
    ],
)
def test_runs_under_other_splits_are_not_compared(shop, tmp_path, settings, differs):
    # With another share the second run has trained on what the first is tested on, or the reverse.
    other = train(shop / "data", "popular", tmp_path / "run", settings=settings)
    with pytest.raises(InputError, match=f"{other} cannot be compared .*{differs}"):
        compare_runs([shop / "time", other])
    with pytest.raises(InputError, match=f"cannot be compared .*{differs}"):
        compare_runs([other, shop / "time"])
