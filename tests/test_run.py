"""From Python: data frames and tables in, run folders out, and data that is prepared only once."""

import json
import os
import signal
import subprocess
import sys
import threading
import types
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import refused

import recsys
from recsys import run as run_module
from recsys.batch import Batch
from recsys.data.prepare import DataConfig
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError, Interrupted, WorkError
from recsys.models import base
from recsys.models.base import SequenceModel

USERS, ITEMS, LENGTH = 60, 20, 8
QUICK = {"model.dim": 8, "model.num_layers": 1, "trainer.batch_size": 16, "trainer.epochs": 2}
SECTIONS = {"model": {"dim": 8, "num_layers": 1}, "trainer": {"batch_size": 16, "epochs": 1}}
LEARNS = {
    **QUICK,
    "model.dim": 16,
    "model.dropout": 0,
    "trainer.lr": 0.01,
    "trainer.epochs": 15,
    "trainer.patience": 0,
}


@dataclass
class Said:
    """A reporter that keeps its lines."""

    lines: list[str] = field(default_factory=list)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def batch(self, *progress: Any) -> None: ...

    def epoch(self, *record: Any) -> None: ...

    def close(self) -> None:
        self.lines.append("closed")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def cycle(items: int = ITEMS) -> pd.DataFrame:
    """Item 100 + i is always followed by 101 + i, and the last one by the first."""
    user, step = np.divmod(np.arange(USERS * LENGTH), LENGTH)
    return pd.DataFrame({"user": user, "item": 100 + (user + step) % items, "time": step})


def read(run: str | Path, file: str) -> dict[str, Any]:
    return json.loads(Path(run, file).read_text())


def test_three_lines_train_on_a_frame_and_recommend():
    frame = cycle()
    before = frame.copy()
    run = recsys.train(frame, model="sasrec", out="runs/mine", settings=LEARNS)
    found = recsys.Retriever.load(run).recommend([103, 104, 105], k=3)
    assert run == Path("runs/mine")
    assert found.items[0] == 106
    assert type(found.items[0]) is int
    pd.testing.assert_frame_equal(frame, before)


def test_frames_of_the_same_values_under_other_names_or_types_are_other_data():
    one = cycle()
    two = one.rename(columns={"user": "item", "item": "user"})
    users = [
        read(recsys.train(frame, "popular", f"runs/{number}"), "metrics.json")["data"]["users"]
        for number, frame in enumerate((one, two))
    ]
    assert users == [USERS, ITEMS]
    with pytest.raises(InputError, match="durations"):
        recsys.train(one.assign(time=pd.to_timedelta(one["time"], unit="ns")), "popular", "runs/3")


def test_a_device_that_there_is_not_is_no_cpu():
    with pytest.raises(InputError, match="'tpu' is none of auto, cpu, cuda"):
        recsys.train(cycle(), "popular", "runs/tpu", device="tpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_process_that_began_on_one_device_says_that_it_cannot_train_on_another(first, then):
    # In a process of its own: what is tried stays with it.
    code = f"""if True:
        import torch
        torch.cuda.is_available = lambda: True
        torch.cuda.set_device = lambda device: None
        from recsys import run
        from recsys.errors import InputError
        print(run._accelerator({first!r}).device.type, run._accelerator({first!r}).device.type)
        try:
            run._accelerator({then!r})
        except InputError as error:
            print(error)
    """
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wanted = f"this process has begun to train on {first}: train on {then} in another"
    assert said.stdout.splitlines() == [f"{first} {first}", wanted]


def test_vectors_for_a_model_that_reads_none_are_refused(tmp_path: Path):
    cycle().to_csv("log.csv", index=False)
    words = ["train", "--model", "sasrec", "--data", "log.csv", "--out", "runs/none"]
    for given in (["--item-vectors", "v.parquet"], ["--set", "model.item_vectors=v.parquet"]):
        assert "needs --set model.item_encoder" in " ".join(refused(*words, *given).split())
    small = {"model.item_vectors": "tfidf", "model.dim": 8, "trainer.epochs": 1}
    assert recsys.train("log.csv", "sasrec", "runs/default", settings=small).is_dir()
    with pytest.raises(InputError, match=r"needs --set model.item_encoder"):
        recsys.train("log.csv", "sasrec", "runs/none", settings={"model.item_vectors": "v.parquet"})
    assert not Path("runs/none").exists()


class Plainest(SequenceModel):
    """A model with none but its own settings."""

    paper, good_at, cost = "none", "tests", "nothing"

    @dataclass(frozen=True)
    class Config:
        dim: int = 8
        max_len: int = 5

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        self.table = torch.nn.Embedding(num_items + 1, config.dim)

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.table(batch.items_BT).cumsum(dim=1)

    def item_vectors(self) -> torch.Tensor:
        return self.table.weight


def test_a_model_needs_no_settings_but_its_own(monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("recsys.models.plainest")
    module.MODEL = Plainest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recsys.models.plainest", module)
    names = [*base.model_names(), "plainest"]
    monkeypatch.setattr(base, "model_names", lambda: names)
    run = recsys.train(cycle(), "plainest", "runs/own", settings={"trainer.epochs": 1})
    assert recsys.Retriever.load(run).recommend([103], k=3).items


def test_an_arrow_table_is_the_same_data_as_its_frame():
    one = recsys.train(cycle(), "popular", "one")
    two = recsys.train(pa.Table.from_pandas(cycle()), "popular", "two")
    assert read(one, "metrics.json")["metrics"] == read(two, "metrics.json")["metrics"]
    assert read(one, "metrics.json")["data"] == read(two, "metrics.json")["data"]
    assert read(one, "metrics.json")["data"]["name"] == "dataframe"


@pytest.mark.parametrize(
    "convert",
    [
        lambda item: "sku-" + item.astype(str),
        lambda item: (item - 100).map("{:03}".format),
        lambda item: item.astype(str),
        lambda item: item.astype(str).astype("category"),
        lambda item: item.astype("Int64"),
        lambda item: pd.Series([f"é{i}" if i % 2 else f"[{i}]," for i in item]),
    ],
)
def test_ids_of_any_type_come_back_as_they_were(convert: Any):
    frame = cycle()
    frame["item"] = convert(frame["item"])
    *history, wanted = frame["item"].iloc[3:7].tolist()
    found = recsys.Retriever.load(recsys.train(frame, "item_knn")).recommend(history, k=1)
    assert (found.items, found.unknown) == ([wanted], [])
    assert type(found.items[0]) is type(wanted)


@pytest.mark.parametrize(
    "times",
    [
        lambda step: pd.Timestamp("2024-02-28") + pd.to_timedelta(step, "D"),
        lambda step: (pd.Timestamp("2024-02-28") + pd.to_timedelta(step, "D")).dt.date,
        lambda step: pd.Timestamp("2024-02-28", tz="UTC") + pd.to_timedelta(step, "D"),
    ],
)
def test_dates_of_a_frame_are_times(times: Any):
    frame = cycle()
    frame["time"] = times(frame["time"])
    dataset = recsys.prepare(frame.sample(frac=1, random_state=0), "data")
    assert dataset.info["time_unit"] == "us"
    # 2024 has a 29th of February: eight days from the 28th end on the 6th of March.
    assert [pd.Timestamp(t, unit="us") for t in dataset.info["time_range"]] == [
        pd.Timestamp("2024-02-28"),
        pd.Timestamp("2024-03-06"),
    ]


def test_settings_are_those_of_the_command_line():
    settings = {
        **QUICK,
        "model.hidden_dim": None,
        "trainer.lr": 1e-5,
        "trainer.tensorboard": True,
        "loss.name": "sampled_softmax",
        "loss.log_q": False,
    }
    run = recsys.train(cycle(), settings=settings, out="run", seed=5, refit=True)
    config = read(run, "config.json")
    assert config["model"].items() >= {"name": "sasrec", "dim": 8, "hidden_dim": None}.items()
    assert config["trainer"].items() >= {"lr": 1e-5, "epochs": 2, "tensorboard": True}.items()
    assert config["loss"].items() >= {"name": "sampled_softmax", "log_q": False}.items()
    assert (config["seed"], config["refit"]) == (5, True)
    assert {path.name for path in Path("run/tensorboard").iterdir()} == {"train", "refit"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.dims": 8}, "did you mean 'dim'"),
        ({"dim": 8}, "SECTION.NAME=VALUE"),
        ({"trainer.epochs": 1.5}, "trainer.epochs must be a whole number, got '1.5'"),
        ({"data.item_column": "itm"}, "did you mean 'item'"),
    ],
)
def test_settings_that_cannot_be_meant_leave_nothing(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        recsys.train(cycle(), settings=settings)
    assert not Path("runs").exists()


@pytest.mark.parametrize("data", [None, 5, [1, 2], {"user": [1], "item": [2]}, np.ones(3)])
def test_what_is_no_data_is_refused_by_its_type(data: object):
    with pytest.raises(InputError, match=type(data).__name__ if data is not None else "data"):
        recsys.train(data)


def test_runs_are_named_after_model_and_data_and_numbered():
    cycle().to_csv("shop.csv", index=False)
    names = [recsys.train("shop.csv", "popular") for _ in range(3)]
    assert names == [Path("runs", f"popular-shop{end}") for end in ("", "-2", "-3")]
    assert recsys.train(cycle(), "item_knn") == Path("runs/item_knn-dataframe")
    with pytest.raises(InputError, match="runs/popular-shop holds a run already"):
        recsys.train("shop.csv", "popular", out="runs/popular-shop")


def opened(data: Any, **settings: Any) -> tuple[SequenceDataset, Path, bool]:
    """(data set, folder, whether it came from the cache)."""
    said = Said()
    dataset, folder = run_module.open_data(data, DataConfig(**settings), said.line)
    return dataset, folder, any("prepared before" in line for line in said.lines)


def write_csv(frame: pd.DataFrame) -> str:
    frame.to_csv("log.csv", index=False)
    return "log.csv"


@pytest.mark.parametrize("make", [write_csv, lambda frame: frame, pa.Table.from_pandas])
def test_data_is_prepared_once_and_again_when_it_changes(make: Any):
    first, folder, cached = opened(make(cycle()))
    assert not cached
    again, place, cached = opened(make(cycle()) if make is not write_csv else "log.csv")
    assert cached
    assert (again.fingerprint, place) == (first.fingerprint, folder)
    changed, _, cached = opened(make(cycle(items=10)))
    assert not cached
    assert changed.num_items == 10
    same, place, cached = opened(make(cycle()), min_user_events=LENGTH)
    assert not cached
    assert place != folder
    assert same.fingerprint == first.fingerprint


def test_a_prepared_folder_is_opened_where_it_is_and_takes_no_settings(tmp_path: Path):
    prepared = recsys.prepare(cycle(), "data", DataConfig(min_user_events=2))
    dataset, folder, _ = opened("data")
    assert dataset.fingerprint == prepared.fingerprint
    assert folder == tmp_path / "data"
    with pytest.raises(InputError, match=r"data is prepared already: settings named data\.\*"):
        recsys.train("data", "popular", settings={"data.min_user_events": 3})
    assert sorted(os.listdir()) == ["data"]


def test_a_counting_model_leaves_a_whole_run():
    run = recsys.train(cycle(), "popular", settings={"model.days": 3})
    files = {"config.json", "model.safetensors", "items.parquet", "history.jsonl", "metrics.json"}
    assert {path.name for path in run.iterdir()} == files
    record = read(run, "history.jsonl")
    assert (record["epoch"], record["loss"]) == (1, None)
    assert record["interactions"] == USERS * (LENGTH - 2)
    assert read(run, "config.json")["model"] == {"name": "popular", "days": 3.0}


def test_the_baselines_of_a_run_are_those_models_trained_alone():
    metrics = {
        name: read(recsys.train(cycle(), name), "metrics.json") for name in ("popular", "item_knn")
    }
    for name, found in metrics.items():
        values = {metric: value["value"] for metric, value in found["metrics"].items()}
        for other in metrics.values():
            assert other["baselines"][name] == values


def test_items_are_counted_in_what_was_trained_on():
    for out, refit, left_out in (("plain", False, 2), ("refit", True, 1)):
        run = recsys.train(cycle(), "popular", out, refit=refit)
        table = pq.read_table(run / "items.parquet")
        assert table["item"].to_pylist() == list(range(100, 100 + ITEMS))
        assert sum(table["count"].to_pylist()) == USERS * (LENGTH - left_out)


def test_evaluate_from_python_is_what_training_wrote():
    run = recsys.train(cycle(), "item_knn")
    assert recsys.evaluate(run)["metrics"] == read(run, "metrics.json")["metrics"]
    found = recsys.evaluate(run, "valid", ks=[1], seen="keep")
    assert found["metrics"]["hr@1"]["value"] == 1.0


def test_the_device_is_chosen_by_what_there_is():
    cuda = torch.cuda.is_available()
    run = recsys.train(cycle(), settings=QUICK)
    assert run.is_dir()
    assert run_module._accelerator("auto").device.type == ("cuda" if cuda else "cpu")
    assert run_module._accelerator("cpu").device.type == "cpu"
    if not cuda:
        with pytest.raises(InputError, match="no CUDA device is available"):
            recsys.train(cycle(), "popular", "other", device="cuda")
        assert not Path("other").exists()


@pytest.mark.parametrize("end", [Interrupted, WorkError, None])
def test_the_reporter_is_closed_however_training_ends(monkeypatch, end):
    learn = run_module.Learning.learn

    def cut_short(learning: Any) -> None:
        learn(learning)
        if end:
            raise end("cut")

    monkeypatch.setattr(run_module.Learning, "learn", cut_short)
    said = Said()
    job = run_module.plan("sasrec", cycle(), Path("run"), SECTIONS, reporter=said)
    with pytest.raises(end) if end else nullcontext():
        run_module.train_run(job.config, job.dataset, job.folder, job.run, reporter=said)
    assert said.lines.count("closed") == 1


def test_training_works_beside_the_main_thread_and_leaves_signals_alone():
    runs: list[Path] = []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def work() -> None:
        runs.append(recsys.train(cycle(), out="run", settings=QUICK))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert runs == [Path("run")]
    assert Path("run/metrics.json").is_file()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize(
    ("choice", "seen"), [("last", 4), ("windows", 4 + 3), ("moving_windows", 4 + 3)]
)
def test_long_histories_are_cut_or_trained_on_in_windows(choice, seen):
    settings = {**QUICK, "model.max_len": 3, "trainer.long_histories": choice}
    run = recsys.train(cycle(), settings=settings)
    first = json.loads(Path(run, "history.jsonl").read_text().splitlines()[0])
    assert first["interactions"] == seen * USERS  # of the 6 that are not held out


def test_a_prepared_data_set_needs_no_engine_no_index_and_no_frames():
    folder = Path("prepared").resolve()
    recsys.prepare(cycle(), folder)
    code = f"""
import sys, recsys
run = recsys.train({str(folder)!r}, settings={QUICK!r}, out="run")
assert recsys.evaluate(run)["users"] == {USERS}
assert len(recsys.Retriever.load(run).recommend([101], k=3).items) == 3
loaded = {{"ibis", "duckdb", "faiss", "pandas", "matplotlib"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_train_one_run_and_one_of_them_speaks():
    recsys.prepare(cycle(), "prepared")
    words = ["train", "--model", "sasrec", "--data", "prepared", "--out", "run", "--device", "cpu"]
    words += [word for name, value in LEARNS.items() for word in ("--set", f"{name}={value}")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "recsys.cli", *words, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["hr@5"]["value"] > 0.9
    assert (Path("run") / "training.png").is_file()


def test_everything_that_is_named_can_be_imported():
    for name in recsys.__all__:
        assert getattr(recsys, name).__module__.startswith("recsys.")
    assert set(recsys.__all__) <= set(dir(recsys))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        recsys.trian  # noqa: B018


def test_a_refit_also_says_what_the_model_reached_before_it():
    plain = read(recsys.train(cycle(), settings=QUICK, out="plain"), "metrics.json")
    refit = read(recsys.train(cycle(), settings=QUICK, out="refit", refit=True), "metrics.json")
    assert refit["without_refit"] == plain["metrics"]
    assert "without_refit" not in plain
