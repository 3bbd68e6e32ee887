"""The protocol of sessions: every prefix asks for the next item, and items may come back."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.checkpoint import CONFIG, HISTORY, METRICS, read_json, write_json
from recsys.data.prepare import DataConfig
from recsys.eval.report import compare_runs, evaluate_run
from recsys.run import prepare, train

KS = (1, 5, 20)
SESSIONS = {"split.kind": "sessions"}
SMALL = {"model.dim": 8, "model.max_len": 6, "trainer.batch_size": 32, "trainer.metric": "mrr@20"}
ITEMS = 30


def walks(count: int, seed: int) -> list[list[int]]:
    """Sessions of 1 to 7 items in which people often return to what they have just seen."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        walk = [int(random.zipf(1.5)) % ITEMS]
        for _ in range(random.integers(0, 7)):
            again = len(walk) > 1 and random.random() < 0.4
            walk.append(walk[-2] if again else int(random.zipf(1.5)) % ITEMS)
        found.append(walk)
    return found


LATE = ITEMS + 2
TRAIN = [*walks(149, 0), [3, LATE, 3, LATE]]  # an item that only a valid session holds
TEST = [*walks(40, 1), [0, ITEMS, 1, ITEMS + 1, ITEMS, LATE]]  # two that neither holds
VALID = TRAIN[-15:]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `data` and a run of each kind, named after it."""
    folder = tmp_path_factory.mktemp("sessions")
    for name, sessions in (("log", TRAIN), ("test", TEST)):
        lines = "".join(" ".join(map(str, session)) + "\n" for session in sessions)
        (folder / f"{name}.txt").write_text(lines)
    config = DataConfig(sessions="lines", test=str(folder / "test.txt"))
    data = folder / "data"
    prepare(folder / "log.txt", data, config)
    for name in ("popular", "item_knn"):
        train(data, name, folder / name, settings=SESSIONS)
    train(data, "popular", folder / "masked", settings={**SESSIONS, "split.seen": "mask"})
    learning = {**SESSIONS, **SMALL, "trainer.epochs": 2}
    train(data, "sasrec", folder / "sasrec", settings=learning)
    train(data, "sasrec", folder / "refit", settings=learning, refit=True)
    return folder


def popular_by_hand(sessions: list[list[int]], seen: str) -> dict[str, float]:
    """Metrics of counting what the sessions that train hold."""
    counts = Counter(item for session in TRAIN[: -len(VALID)] for item in session)
    catalogue = {item for session in TRAIN + TEST for item in session}
    ranks = []
    for session in sessions:
        for place in range(1, len(session)):
            history, target = session[:place], session[place]
            score = {item: float(counts[item]) for item in catalogue}
            if seen == "mask":
                score |= dict.fromkeys(history, -math.inf)
            others = catalogue - {target}
            ranks.append(sum(score[item] >= score[target] for item in others))
    found = {}
    for k in KS:
        near = [rank for rank in ranks if rank < k]
        found[f"hr@{k}"] = len(near) / len(ranks)
        found[f"ndcg@{k}"] = sum(1 / math.log2(rank + 2) for rank in near) / len(ranks)
        found[f"mrr@{k}"] = sum(1 / (rank + 1) for rank in near) / len(ranks)
    return found


def values(result: dict[str, Any]) -> dict[str, float]:
    return {name: found["value"] for name, found in result["metrics"].items()}


@pytest.mark.parametrize(("part", "sessions"), [("valid", VALID), ("test", TEST)])
@pytest.mark.parametrize("seen", [None, "keep", "mask"])
def test_every_item_behind_the_first_of_a_session_is_asked_for(shop, part, sessions, seen):
    result = evaluate_run(shop / "popular", part, KS, seen)
    assert values(result) == pytest.approx(popular_by_hand(sessions, seen or "keep"))
    assert result["protocol"]["seen"] == (seen or "keep")
    assert result["targets"] == sum(len(session) - 1 for session in sessions)
    assert result["users"] == sum(len(session) > 1 for session in sessions)


def test_metrics_json_says_what_was_asked_of_whom(shop):
    trained = {item for session in TRAIN[: -len(VALID)] for item in session}
    targets = [item for session in TEST for item in session[1:]]
    assert read_json(shop / "popular" / METRICS)["split"] == {
        "kind": "sessions",
        "target": "successive",
        "test_given": True,
        "train_sessions": len(TRAIN) - len(VALID),
        "valid_sessions": len(VALID),
        "test_sessions": len(TEST),
        "part": "test",
        "targets_never_trained": sum(item not in trained for item in targets),
    }


def test_after_a_refit_what_valid_sessions_hold_was_trained(shop):
    missing = [
        read_json(shop / run / METRICS)["split"]["targets_never_trained"]
        for run in ("sasrec", "refit")
    ]
    assert missing[0] > missing[1] == 3


def test_the_setting_decides_where_no_option_does(shop):
    stored = read_json(shop / "masked" / METRICS)
    assert stored["protocol"]["seen"] == "mask"
    wanted = evaluate_run(shop / "popular", seen="mask")
    assert (stored["metrics"], stored["baselines"]) == (wanted["metrics"], wanted["baselines"])
    for first, second, seen in (("popular", "masked", "keep"), ("masked", "popular", "mask")):
        found = compare_runs([shop / first, shop / second], KS)
        assert found["protocol"]["seen"] == seen
        assert [values(row) for row in found["runs"]] == [
            values(evaluate_run(shop / "popular", "test", KS, seen))
        ] * 2
    assert (
        compare_runs([shop / "masked", shop / "popular"], KS, "keep")["protocol"]["seen"] == "keep"
    )


def test_baselines_follow_the_same_protocol(shop):
    stored = read_json(shop / "sasrec" / METRICS)
    for name in ("popular", "item_knn"):
        assert stored["baselines"][name] == values(read_json(shop / name / METRICS))


def test_validation_while_training_follows_the_protocol_of_the_split(shop):
    lines = (shop / "sasrec" / HISTORY).read_text().splitlines()
    best = max((json.loads(line)["valid"] for line in lines), key=lambda valid: valid["mrr@20"])
    assert best == values(evaluate_run(shop / "sasrec", "valid", (10, 20)))
    assert best != values(evaluate_run(shop / "sasrec", "valid", (10, 20), "mask"))


def test_what_is_kept_of_a_run_before_its_refit_follows_it_too(shop):
    before = read_json(shop / "refit" / METRICS)["without_refit"]
    assert before == read_json(shop / "sasrec" / METRICS)["metrics"]


def test_a_run_of_an_older_version_is_evaluated_and_compared_as_it_was(shop, tmp_path):
    lines = "".join(f"u{user} 1 2 3 {user % 4}\n" for user in range(12))
    (tmp_path / "log.txt").write_text(lines)
    prepare(tmp_path / "log.txt", tmp_path / "data")
    run = train(tmp_path / "data", "popular", tmp_path / "run")
    shutil.copytree(run, tmp_path / "old")
    config = read_json(run / CONFIG)
    del config["split"]["seen"], config["data"]["sessions"], config["data"]["test"]
    config["split"]["target"] = "last"  # what auto stands for was written then
    write_json(tmp_path / "old" / CONFIG, config)
    assert evaluate_run(tmp_path / "old")["metrics"] == evaluate_run(run)["metrics"]
    for runs in ([run, tmp_path / "old"], [tmp_path / "old", run]):
        assert compare_runs(runs)["protocol"]["seen"] == "mask"
