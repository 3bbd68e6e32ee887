"""The recsys command: from a log to recommendations, and what every command promises."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pyarrow.parquet as pq
import pytest
from commands import done, recsys, refused, sets

USERS, ITEMS, LENGTH = 60, 20, 8
FIRST_DAY = 1_700_006_400
METRICS = {f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in (5, 10, 20)}
LEARNS = {
    "model.dim": 16,
    "model.num_layers": 1,
    "model.max_len": LENGTH,
    "model.dropout": 0,
    "trainer.batch_size": 16,
    "trainer.lr": 0.01,
    "trainer.epochs": 20,
    "trainer.patience": 0,
}
QUICK = {**LEARNS, "model.dim": 8, "trainer.epochs": 2}


def cycle_log(path: Path, header: str = "user,item,time") -> Path:
    """Item i is always followed by i + 1, and the last one by the first; a day between them."""
    rows = (
        f"u{user},i{(user + step) % ITEMS},{FIRST_DAY + step * 86_400}\n"
        for user in range(USERS)
        for step in range(LENGTH)
    )
    path.write_text(header + "\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with log.csv, the data set `data`, the trained runs `sasrec` and `popular`."""
    folder = tmp_path_factory.mktemp("shop")
    cycle_log(folder / "log.csv")
    done("data", "prepare", folder / "log.csv", "--out", folder / "data")
    for name in ("sasrec", "popular"):
        settings = sets(LEARNS) if name == "sasrec" else []
        out = folder / name
        done("train", "--model", name, "--data", folder / "data", "--out", out, *settings)
    done("index", folder / "sasrec", "--type", "flat")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_trained_run_recommends_what_comes_next(shop: Path):
    answer = done("recommend", shop / "sasrec", "--history", "i3,i4", "-k", 4, "--json").json
    assert answer["items"][0]["item"] == "i5"
    assert len({found["item"] for found in answer["items"]} - {"i3", "i4"}) == 4
    scores = [found["score"] for found in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert (answer["unknown"], answer["fallback"]) == ([], None)


def test_a_model_over_gaps_is_asked_with_the_times_of_the_history(shop: Path, tmp_path: Path):
    short = sets({"model.time": "gaps", "model.dim": 8, "trainer.epochs": 1})
    done("train", "--model", "lssl_rec", "--data", shop / "data", "--out", "gaps", *short)
    history = ("recommend", "gaps", "--history", "i3,i4", "-k", 2, "--json")
    near, far = (
        done(*history, "--times", times).json["items"] for times in ("0,86400", "0,8640000")
    )
    assert len(near) == len(far) == 2
    assert [found["score"] for found in near] != [found["score"] for found in far]


def test_all_users_are_recommended_what_comes_next(shop: Path, tmp_path: Path):
    out = tmp_path / "recs.parquet"
    said = done("recommend", shop / "sasrec", "--all-users", "--out", out, "-k", 3, "--json").json
    rows = pq.read_table(out).to_pylist()
    assert said["rows"] == len(rows) == USERS * 3
    assert list(rows[0]) == ["user", "rank", "item", "score"]
    first = {row["user"]: row["item"] for row in rows if row["rank"] == 1}
    assert first == {f"u{user}": f"i{(user + LENGTH) % ITEMS}" for user in range(USERS)}


def test_a_history_is_shown_with_what_was_skipped(shop: Path):
    said = done("recommend", shop / "sasrec", "--history", "i3,nowhere, i4").out
    assert "nowhere" in said
    assert "i5" in said
    said = done("recommend", shop / "sasrec", "--history", "nowhere").out
    assert "popularity" in said


def test_a_terminal_of_few_characters_still_gets_its_tables(shop: Path):
    words = [sys.executable, "-m", "recsys.cli", "eval", shop / "sasrec"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    answer = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "ndcg@10" in answer.stdout


def test_a_run_says_where_its_data_lies_from_wherever_it_is_asked(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RECSYS_CACHE", "cache")
    done("train", "--model", "popular", "--data", shop / "log.csv", "--out", tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done("eval", tmp_path / "run")


def test_a_longer_training_shows_what_it_would_recommend_beside_an_index_of_before(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("recsys.retrieval.opening.HNSW_FROM", 10)
    run = tmp_path / "run"
    done("train", "--model", "sasrec", "--data", shop / "data", "--out", run, *sets(QUICK))
    done("index", run, "--type", "flat")
    end = ["--set", "trainer.epochs=4"]
    assert "would be shown" in done("train", "--resume", "--out", run, *end).out
    assert "was built for other weights" in refused("recommend", run, "--history", "i1")


def test_a_history_may_come_in_lines(shop: Path):
    in_lines = done("recommend", shop / "sasrec", "--history", "i3\ni4,i5\n", "--json").json
    assert in_lines == done("recommend", shop / "sasrec", "--history", "i3,i4,i5", "--json").json


def test_seen_items_come_back_where_the_split_of_the_run_keeps_them(shop: Path, tmp_path: Path):
    keeping = sets({"split.kind": "sessions", "split.target": "last", **QUICK})
    out = tmp_path / "keeps"
    said = done("train", "--model", "sasrec", "--data", shop / "data", "--out", out, *keeping)
    assert said.code == 0
    words = ("recommend", out, "--history", "i3,i4", "-k", ITEMS, "--json")
    items = [
        {found["item"] for found in done(*words, *seen).json["items"]}
        for seen in ([], ["--seen", "keep"], ["--seen", "mask"])
    ]
    assert items[0] == items[1] == items[2] | {"i3", "i4"}


@pytest.mark.parametrize(("history", "unknown"), [("x,y", ["x", "y"]), ("", []), (" , ", [])])
def test_a_history_without_a_known_item_is_answered_by_popularity(
    shop: Path, history: str, unknown: list[str]
):
    answer = done("recommend", shop / "sasrec", "--history", history, "--json").json
    assert (answer["unknown"], answer["fallback"]) == (unknown, "popularity")
    assert len(answer["items"]) == 10


def test_no_more_is_recommended_than_there_is(shop: Path):
    answer = done("recommend", shop / "sasrec", "--history", "i1,i2", "-k", 999, "--json").json
    items = {found["item"] for found in answer["items"]}
    assert len(items) == len(answer["items"]) == ITEMS - 2


def test_metrics_keep_their_contract(shop: Path):
    found = json.loads((shop / "sasrec/metrics.json").read_text())
    described = json.loads((shop / "data/dataset.json").read_text())
    assert found["data"] == {
        "name": "log",
        "fingerprint": described["fingerprint"],
        "users": USERS,
        "items": ITEMS,
        "interactions": USERS * LENGTH,
    }
    assert found["split"].items() >= {"kind": "leave_one_out", "part": "test"}.items()
    protocol = {"ranking": "full", "ties": "against", "seen": "mask", "refit": False}
    assert found["protocol"].items() >= protocol.items()
    assert found["users"] == USERS
    assert found["seconds"] > 0
    assert found["metrics"].keys() == METRICS
    for value in found["metrics"].values():
        assert value == {"value": 1.0, "ci95": [1.0, 1.0]}


def test_eval_repeats_the_metrics_of_the_training(shop: Path):
    written = json.loads((shop / "sasrec/metrics.json").read_text())
    asked = done("eval", shop / "sasrec", "--json").json
    assert {**asked, "seconds": 0} == {**written, "seconds": 0}


def test_eval_says_what_was_asked(shop: Path):
    found = done(
        "eval", shop / "popular", "--split", "valid", "--k", "3,1", "--seen", "keep", "--json"
    ).json
    assert found["split"]["part"] == "valid"
    assert found["protocol"]["seen"] == "keep"
    assert list(found["metrics"]) == [
        f"{name}@{k}" for k in (1, 3) for name in ("hr", "ndcg", "mrr")
    ]
    for value in found["metrics"].values():
        assert 0 <= value["ci95"][0] <= value["value"] <= value["ci95"][1] <= 1


def test_validation_metrics_are_those_of_the_best_epoch(shop: Path):
    lines = (shop / "sasrec/history.jsonl").read_text().splitlines()
    best = max(json.loads(line)["valid"]["ndcg@10"] for line in lines)
    found = done("eval", shop / "sasrec", "--split", "valid", "--k", 10, "--json").json
    assert found["metrics"]["ndcg@10"]["value"] == best


def test_a_flat_index_answers_as_exact_search_does(shop: Path):
    exact = done("eval", shop / "sasrec", "--json").json
    through = done("eval", shop / "sasrec", "--through", "index", "--json").json
    assert through["metrics"] == exact["metrics"]
    assert "through the index" in done("eval", shop / "sasrec", "--through", "index").out
    words = ("recommend", shop / "sasrec", "--history", "i1,i2,i3", "--json", "--through")
    one, other = done(*words, "exact").json["items"], done(*words, "index").json["items"]
    assert [found["item"] for found in one] == [found["item"] for found in other]


def test_compare_gives_the_difference_to_the_first_run(shop: Path):
    found = done("compare", shop / "popular", shop / "sasrec", "--k", 10, "--json").json
    popular, sasrec = found["runs"]
    assert (popular["model"], sasrec["model"]) == ("popular", "sasrec")
    assert "difference_to_first" not in popular
    for name, difference in sasrec["difference_to_first"].items():
        values = [row["metrics"][name]["value"] for row in (popular, sasrec)]
        assert difference["difference"] == pytest.approx(values[1] - values[0])
    assert sasrec["difference_to_first"]["hr@10"] == {"difference": 1.0, "ci95": [1.0, 1.0]}
    said = done("compare", shop / "popular", shop / "sasrec").out
    assert "+1.0000" in said


def test_info_counts_what_is_there(shop: Path, tmp_path: Path):
    picture = tmp_path / "shop.png"
    found = done("data", "info", shop / "data", "--picture", picture, "--json").json
    assert (found["users"], found["items"], found["interactions"]) == (USERS, ITEMS, USERS * LENGTH)
    assert found["density"] == LENGTH / ITEMS
    assert found["repeats"] == 0
    assert found["history_length"] == {
        "min": LENGTH, "median": LENGTH, "mean": LENGTH, "p90": LENGTH, "max": LENGTH
    }  # fmt: skip
    assert found["time_range"] == ["2023-11-15T00:00:00+00:00", "2023-11-22T00:00:00+00:00"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_info_shows_the_whole_fingerprint(shop: Path):
    fingerprint = json.loads((shop / "data/dataset.json").read_text())["fingerprint"]
    said = done("data", "info", shop / "data", "--picture", "p.png").out
    assert fingerprint in "".join(said.split())


def test_the_run_folder_keeps_its_contract(shop: Path):
    run = shop / "sasrec"
    config = json.loads((run / "config.json").read_text())
    assert config["model"].items() >= {"name": "sasrec", "dim": 16, "dropout": 0.0}.items()
    assert config["trainer"]["epochs"] == 20
    assert config["loss"]["name"] == "softmax"
    assert config["versions"].keys() >= {"python", "recsys", "torch"}
    assert config["command"]
    items = pq.read_table(run / "items.parquet").to_pylist()
    assert [row["item"] for row in items] == [f"i{number}" for number in range(ITEMS)]
    # Every user's last two are held out, so each item loses a fourth of its interactions.
    assert sum(row["count"] for row in items) == USERS * (LENGTH - 2)
    assert pq.read_table(shop / "data/items.parquet")["item"].to_pylist() == [
        row["item"] for row in items
    ]
    assert (run / "model.safetensors").is_file()
    assert (run / "index.faiss").is_file()
    assert any((run / "state").iterdir())
    assert (run / "training.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.rglob("*.part"))


def test_history_has_a_line_an_epoch(shop: Path):
    records = [
        json.loads(line) for line in (shop / "sasrec/history.jsonl").read_text().splitlines()
    ]
    assert [record["epoch"] for record in records] == list(range(1, 21))
    for record in records:
        assert record["interactions"] == USERS * (LENGTH - 2)
        assert record["interactions_per_second"] > 0
        assert record["seconds"] > 0
        assert record["peak_rss_mb"] > 50
        assert record["valid"].keys() == {"hr@10", "ndcg@10", "mrr@10"}
    # A guess among all items has a loss of ln 20; the cycle is learned within twenty epochs.
    assert records[-1]["loss"] < 0.2 < 2 < records[0]["loss"] < math.log(ITEMS)


def test_training_prints_the_model_beside_the_baselines_and_what_it_would_show(
    shop: Path, tmp_path: Path
):
    said = done("train", "--model", "sasrec", "--data", shop / "data", *sets(LEARNS)).out
    for word in ("sasrec", "popular", "item_knn", "95 %", "leave_one_out", "trained on train"):
        assert word in said
    # User 14 chose i14 … i19, i0, i1.
    assert "user u14" in said
    assert "1. i2" in said
    assert (tmp_path / "runs/sasrec-log/metrics.json").is_file()


JSON = {
    "data list": "",
    "data prepare": "SHOP/log.csv --out data",
    "data info": "SHOP/data --picture p.png",
    "train": "--model sasrec --data SHOP/log.csv --set trainer.epochs=1 --out run",
    "eval": "SHOP/sasrec",
    "compare": "SHOP/sasrec SHOP/popular",
    "index": "SHOP/sasrec --type flat",
    "recommend": "SHOP/sasrec --all-users --out recs.parquet",
    "models": "",
    "losses": "",
    "recipes": "",
    "kernels": "",
}


@pytest.mark.parametrize("command", JSON)
def test_json_is_one_object_and_everything_else_goes_to_standard_error(shop: Path, command: str):
    words = [word.replace("SHOP", str(shop)) for word in f"{command} {JSON[command]}".split()]
    answer = done(*words, "--json")
    assert isinstance(answer.json, dict)
    assert answer.out.count("\n") == 1
    talks = command in ("data prepare", "train")
    assert ("user = 'user', item = 'item', time = 'time'" in answer.err) == talks
    assert ("epoch   1" in answer.err) == (command == "train")


def test_train_prints_its_metrics_and_its_folder_as_json(shop: Path, tmp_path: Path):
    words = ("train", "--model", "popular", "--data", shop / "data", "--out", "run", "--json")
    found = done(*words).json
    assert found.pop("run") == "run"
    assert found == json.loads((tmp_path / "run/metrics.json").read_text())


def test_a_failure_prints_nothing_on_standard_output(shop: Path):
    answer = recsys("eval", shop / "data", "--json")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")


HEAVY = ("torch", "ibis", "duckdb", "pandas", "pyarrow", "faiss", "transformers", "matplotlib")


@pytest.mark.parametrize("code", ["import recsys", "from recsys.cli import main\nmain(['--help'])"])
def test_help_and_import_are_quick_and_load_nothing_heavy(code: str):
    watched = (
        f"import atexit, sys\natexit.register(lambda: print([name for name in {HEAVY!r}"
        f" if name in sys.modules], file=sys.stderr))\n{code}"
    )
    before = getrusage(RUSAGE_CHILDREN)
    found = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True)
    after = getrusage(RUSAGE_CHILDREN)
    assert (found.returncode, found.stderr) == (0, "[]\n")
    assert "main" not in code or "recommend" in found.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
