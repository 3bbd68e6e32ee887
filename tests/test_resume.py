"""Stopping a training and going on: in the end nothing tells it from one that was never stopped."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import contents, recsys, sets

from recsys.checkpoint import LOCK, STATE, read_tensors
from recsys.settings import configure, differences
from recsys.training.watch import FolderWatcher
from recsys.whole import held_alone

SETTINGS = {
    "model.dim": 8,
    "model.num_layers": 1,
    "model.max_len": 8,
    "model.dropout": 0.3,
    "loss.name": "bce",
    "trainer.batch_size": 8,
    "trainer.epochs": 20,
    "trainer.patience": 7,
    "trainer.lr": 0.01,
    "trainer.schedule": "cosine",
    "trainer.save_every_seconds": 0,
}
STEPS_AN_EPOCH = 5
WORDS = sets(SETTINGS)
CLOCK = {"seconds", "interactions_per_second", "valid_seconds", "peak_rss_mb"}


def beside(*words: object, code: str = "") -> "subprocess.Popen[str]":
    """The command in a process of its own; `code` runs in it before."""
    script = f"import sys\n{code}\nfrom recsys.cli import main\nmain(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def training(data: Path, out: Path, *more: object) -> list[object]:
    place = ["--data", data, "--out", out, "--device", "cpu", "--seed", 3]
    return ["train", "--model", "sasrec", *place, *WORDS, *more]


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, without what a clock decides."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    metrics = json.loads((run / "metrics.json").read_text())
    return {
        "weights": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        "items": pq.read_table(run / "items.parquet").to_pylist(),
        "metrics": {name: value for name, value in metrics.items() if name not in CLOCK},
        "history": [{key: line[key] for key in line.keys() - CLOCK} for line in lines],
    }


def log(path: Path, shift: int = 0) -> Path:
    """A log that follows no rule: the first epoch is the best, and patience ends the training."""
    rows = (
        f"u{user},i{(user * user + step**3 + shift * step) % 20},{step}\n"
        for user in range(40)
        for step in range(8)
    )
    path.write_text("user,item,time\n" + "".join(rows))
    return path


def epochs(run: Path, stage: str) -> int:
    lines = (run / "history.jsonl").read_text().splitlines()
    return sum(json.loads(line)["stage"] == stage for line in lines)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    recsys("data", "prepare", log(folder / "log.csv"), "--out", folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """A run that was not stopped."""
    run = data.with_name("whole")
    assert recsys(*training(data, run)).code == 0
    assert epochs(run, "train") < SETTINGS["trainer.epochs"]
    return run


@pytest.fixture(scope="module")
def whole_refit(data: Path) -> Path:
    run = data.with_name("refit")
    assert recsys(*training(data, run, "--refit")).code == 0
    return run


def test_a_refit_may_be_asked_for_later(data: Path, whole_refit: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert recsys(*training(data, run)).code == 0
    assert json.loads((run / "metrics.json").read_text())["protocol"]["refit"] is False
    answer = recsys("train", "--resume", "--refit", "--out", run, "--device", "cpu")
    assert answer.code == 0, answer.err
    assert outcome(run) == outcome(whole_refit)
    # Nothing is trained again, and the refit is not taken back.
    assert recsys("train", "--resume", "--out", run, "--device", "cpu").code == 0
    assert outcome(run) == outcome(whole_refit)


CONSTANT = ["--set", "trainer.schedule=constant"]


def signals(number: signal.Signals, step: int) -> Callable[..., None]:
    """In the place of FolderWatcher.batch: it sends the process a signal at a step."""
    batch = FolderWatcher.batch

    def signalled(self: FolderWatcher, progress: Any, num_batches: int) -> None:
        batch(self, progress, num_batches)
        if progress.step == step:
            os.kill(os.getpid(), number)

    return signalled


@pytest.fixture(scope="module")
def nine_epochs(data: Path) -> Path:
    """A run at a constant learning rate, which patience or its ninth epoch ends."""
    run = data.with_name("nine")
    assert recsys(*training(data, run, *CONSTANT, "--set", "trainer.epochs=9")).code == 0
    assert epochs(run, "train") >= 8
    return run


@pytest.mark.parametrize("refit", [[], ["--refit"]])
def test_a_training_at_a_constant_rate_may_be_asked_to_end_later(
    data: Path, nine_epochs: Path, tmp_path: Path, refit: list[str]
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    end = ["--set", "trainer.epochs=12", "--set", "trainer.patience=0", *refit]
    assert recsys(*training(data, whole, *CONSTANT, *end)).code == 0
    shutil.copytree(nine_epochs, run)
    answer = recsys("train", "--resume", "--out", run, "--device", "cpu", *end)
    assert answer.code == 0, answer.err
    assert epochs(run, "train") == 12
    assert outcome(run) == outcome(whole)
    assert recsys("train", "--resume", "--out", run, "--device", "cpu").code == 0
    assert outcome(run) == outcome(whole)


def test_a_training_does_not_end_before_what_it_has_done(nine_epochs: Path):
    before = contents(nine_epochs)
    end = ["--set", "trainer.epochs=5"]
    answer = recsys("train", "--resume", "--out", nine_epochs, "--device", "cpu", *end)
    assert (answer.code, answer.out) == (2, "")
    assert "epochs: trainer.epochs cannot be less" in answer.err
    assert contents(nine_epochs) == before


def test_a_training_does_not_end_with_an_epoch_that_was_not_validated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    every = [*CONSTANT, "--set", "trainer.epochs=10", "--set", "trainer.validate_every=5"]
    with monkeypatch.context() as patched:
        patched.setattr(FolderWatcher, "batch", signals(signal.SIGINT, STEPS_AN_EPOCH + 1))
        assert recsys(*training(data, run, *every)).code in (1, 130)
    before = contents(run)
    resume = ["train", "--resume", "--out", run, "--device", "cpu"]
    answer = recsys(*resume, "--set", "trainer.epochs=1")
    assert (answer.code, answer.out) == (2, "")
    assert "has trained for 1 epochs, the last of them without a validation" in answer.err
    assert contents(run) == before
    answer = recsys(*resume, "--set", "trainer.epochs=2")
    assert answer.code == 0, answer.err
    assert epochs(run, "train") == 2


def test_a_refit_keeps_the_end_of_the_training_that_it_repeats(whole_refit: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(whole_refit, run)
    answer = recsys("train", "--resume", "--out", run, "--set", "trainer.epochs=30")
    assert (answer.code, answer.out) == (2, "")
    assert "trainer.epochs was 20, is 30" in answer.err


SLOW = """
import time
from recsys.training import watch
watch.FolderWatcher.batch = lambda *arguments: time.sleep(0.05)
"""


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(data: Path, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    process = beside(*training(data, run), code=SLOW)
    deadline = time.monotonic() + 120
    while not (run / "history.jsonl").is_file() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (1, 130), err
    assert "Traceback" not in err
    assert f"--resume --out {run}" in err.splitlines()[-1]
    assert out == ""
    assert not (run / "metrics.json").exists()
    assert recsys("train", "--resume", "--out", run, "--device", "cpu").code == 0
    assert outcome(run) == outcome(whole)


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGINT, 1), (signal.SIGTERM, STEPS_AN_EPOCH), (signal.SIGINT, 4 * STEPS_AN_EPOCH + 2)],
)
def test_a_signal_stops_after_the_step_and_loses_nothing(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals, step: int,
):  # fmt: skip
    handler = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(FolderWatcher, "batch", signals(number, step))
        answer = recsys(*training(data, tmp_path))
    assert (answer.code in (1, 130), answer.out) == (True, "")
    assert read_tensors(tmp_path / STATE)[1]["progress"]["step"] == step
    assert signal.getsignal(number) is handler
    assert recsys("train", "--resume", "--out", tmp_path, "--device", "cpu").code == 0
    assert outcome(tmp_path) == outcome(whole)


KILLED = """
import os, signal
from recsys.training import watch
save = watch.FolderWatcher.save

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def save_and_die(self, tensors, meta):
    if (self.stage, meta["epoch"], meta["batch"]) == ("train", 3, 3):
        os.replace = die
    save(self, tensors, meta)

watch.FolderWatcher.save = save_and_die
"""


def goes_on_to(whole: Path, run: Path) -> None:
    answer = recsys("train", "--resume", "--out", run, "--device", "cpu")
    assert answer.code == 0, answer.err
    assert outcome(run) == outcome(whole)
    assert not list(run.rglob("*.part"))


def test_a_training_killed_while_it_saves_goes_on_from_the_state_before(
    data: Path, whole: Path, tmp_path: Path
):
    process = beside(*training(data, tmp_path), code=KILLED)
    _, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, err
    assert list(tmp_path.rglob("*.part"))
    progress = read_tensors(tmp_path / STATE)[1]["progress"]
    assert (progress["epoch"], progress["batch"]) == (3, 2)
    goes_on_to(whole, tmp_path)


@pytest.mark.parametrize(("stage", "epoch", "batch"), [("train", None, 0), ("refit", 0, 1)])
def test_what_lies_in_the_folder_behind_a_save_is_enough_to_go_on(
    data: Path, whole_refit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stage: str, epoch: int | None, batch: int,
):  # fmt: skip
    """A copy of the folder is what a process that was killed there would leave."""
    last = (stage, epochs(whole_refit, stage) if epoch is None else epoch, batch)
    save, left = FolderWatcher.save, tmp_path / "left"

    def save_and_copy(self: FolderWatcher, tensors: Any, meta: dict[str, Any]) -> None:
        save(self, tensors, meta)
        if (self.stage, meta["epoch"], meta["batch"]) == last:
            shutil.copytree(self.run, left)

    with monkeypatch.context() as patched:
        patched.setattr(FolderWatcher, "save", save_and_copy)
        assert recsys(*training(data, tmp_path / "run", "--refit")).code == 0
    progress = read_tensors(left / STATE)[1]["progress"]
    assert (progress["epoch"], progress["batch"]) == last[1:]
    goes_on_to(whole_refit, left)


@pytest.mark.parametrize("lost", [["state"], ["state", "history.jsonl", "items.parquet"], []])
def test_a_run_that_was_cut_between_its_files_goes_on(whole: Path, tmp_path: Path, lost: list[str]):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ["metrics.json", *lost]:
        shutil.rmtree(run / name) if name == "state" else (run / name).unlink()
    assert recsys("train", "--resume", "--out", run, "--device", "cpu").code == 0
    assert outcome(run) == outcome(whole)


def test_a_complete_run_says_so_and_stays_as_it_is(whole: Path):
    before = contents(whole)
    answer = recsys("train", "--resume", "--out", whole, "--json")
    assert answer.code == 0
    assert "is complete already" in answer.err
    assert json.loads(answer.out)["metrics"]["hr@10"]["value"] > 0
    assert {**contents(whole), "training.png": b""} == {**before, "training.png": b""}


@pytest.mark.parametrize("words", [[], ["--refit"]])
def test_two_processes_do_not_train_one_run(whole: Path, tmp_path: Path, words: list[str]):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "metrics.json").unlink()
    before = contents(run)
    with held_alone(run / LOCK, "not the first"):
        answer = recsys("train", "--resume", "--out", run, *words, "--device", "cpu")
    assert (answer.code, answer.out) == (2, "")
    assert f"another process trains {run}" in answer.err
    assert contents(run) == before
    goes_on_to(whole, run)


def test_what_died_before_it_wrote_its_settings_is_begun_anew(
    data: Path, whole: Path, tmp_path: Path
):
    run = tmp_path / "run"
    with held_alone(run / LOCK, "not the first"):
        answer = recsys(*training(data, run))
        assert (answer.code, answer.out) == (2, "")
        assert f"another process trains {run}" in answer.err
    assert recsys(*training(data, run)).code == 0
    assert outcome(run) == outcome(whole)


def test_a_run_is_not_begun_twice_without_resume(data: Path, whole: Path):
    before = contents(whole)
    answer = recsys(*training(data, whole))
    assert answer.code == 2
    assert "go on with --resume, or choose another --out" in answer.err
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "model.dim=16"], "model.dim was 8, is 16"),
        (["--set", "trainer.lr=0.5"], "trainer.lr was 0.01, is 0.5"),
        # Under a cosine the end decides the rate of every step.
        (["--set", "trainer.epochs=30"], "trainer.epochs was 20, is 30"),
        (["--set", "loss.name=gbce"], "loss.name was bce, is gbce"),
        (["--seed", 4], "seed was 3, is 4"),
        (["--refit", "--set", "trainer.lr=0.5"], "trainer.lr was 0.01, is 0.5"),
        (["--model", "popular"], "model.name was sasrec, is popular"),
    ],
)
def test_other_settings_are_refused_by_name(whole: Path, words: list[object], message: str):
    before = contents(whole)
    answer = recsys("train", "--resume", "--out", whole, *words)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert contents(whole) == before


def test_settings_said_again_are_no_other_settings(data: Path, whole: Path):
    assert recsys(*training(data, whole, "--resume")).code == 0


@pytest.mark.parametrize("again", [True, False])
def test_a_run_begun_before_there_was_a_setting_goes_on(
    data: Path, whole: Path, tmp_path: Path, again: bool
):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "metrics.json").unlink()
    config = json.loads((run / "config.json").read_text())
    del config["split"]["seen"], config["data"]["sessions"], config["data"]["test"]
    config["split"]["target"] = "last"  # what auto stands for was written then
    (run / "config.json").write_text(json.dumps(config))
    words = training(data, run) if again else ["train", "--out", run, "--device", "cpu"]
    answer = recsys(*words, "--resume")
    assert answer.code == 0, answer.err
    assert outcome(run) == outcome(whole)


def test_a_setting_that_is_new_cannot_be_changed_by_resuming(whole: Path):
    answer = recsys("train", "--resume", "--out", whole, "--set", "split.seen=keep")
    assert answer.code == 2
    assert "split.seen was mask, is keep" in answer.err


def test_an_auto_is_no_other_setting_than_what_it_stands_for():
    now = configure("sasrec", {})
    assert (
        differences(configure("sasrec", {"split": {"target": "last", "seen": "mask"}}), now) == []
    )
    other = configure("sasrec", {"split": {"kind": "sessions"}})
    assert differences(now, other) == [
        "split.kind was leave_one_out, is sessions",
        "split.target was last, is successive",
        "split.seen was mask, is keep",
    ]


def test_other_data_is_refused(data: Path, whole: Path, tmp_path: Path):
    recsys("data", "prepare", log(tmp_path / "log.csv", shift=3), "--out", tmp_path / "other")
    before = contents(whole)
    answer = recsys("train", "--resume", "--out", whole, "--data", tmp_path / "other")
    assert answer.code == 2
    assert "dataset.fingerprint was" in answer.err
    assert contents(whole) == before


def test_data_that_has_moved_is_named(data: Path, whole: Path, tmp_path: Path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(whole, run)
    shutil.copytree(data, moved)
    config = json.loads((run / "config.json").read_text())
    config["dataset"]["path"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.json").unlink()
    answer = recsys("train", "--resume", "--out", run)
    assert answer.code == 2
    assert str(tmp_path / "gone") in answer.err
    assert f"the data of {run} is no longer in" in answer.err
    assert recsys("train", "--resume", "--out", run, "--data", moved, "--device", "cpu").code == 0
    assert outcome(run) == outcome(whole)
    assert recsys("eval", run).code == 0  # it knows the new place


@pytest.mark.parametrize(("stage_steps", "said"), [(1, "false"), (None, "is not complete")])
def test_what_was_stopped_before_or_in_its_refit_is_not_called_refitted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage_steps: int | None, said: str
):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        if stage_steps is not None:
            patched.setattr(FolderWatcher, "batch", signals(signal.SIGINT, 2 * STEPS_AN_EPOCH + 1))
        else:

            def stop_in_refit(self: FolderWatcher, record: Any, history: Any, best: int) -> None:
                epoch(self, record, history, best)
                if self.stage == "refit":
                    signal.raise_signal(signal.SIGINT)

            epoch = FolderWatcher.epoch
            patched.setattr(FolderWatcher, "epoch", stop_in_refit)
        assert recsys(*training(data, run, "--refit")).code in (1, 130)
    answer = recsys("eval", run, "--json")
    if stage_steps is None:
        assert (answer.code, answer.out) == (2, "")
        assert said in answer.err
        return
    assert json.loads(answer.out)["protocol"]["refit"] is False
    assert recsys("eval", run, "--split", "valid").code == 0
    compared = recsys("compare", run, run, "--json")
    assert [row["refit"] for row in json.loads(compared.out)["runs"]] == [False, False]


@pytest.mark.parametrize("make", [lambda run: None, Path.mkdir, Path.touch])
def test_what_is_no_run_cannot_be_resumed(tmp_path: Path, make: Callable[[Path], None]):
    run = tmp_path / "run"
    make(run)
    before = [*tmp_path.rglob("*")]
    answer = recsys("train", "--resume", "--out", run)
    assert (answer.code, answer.out) == (2, "")
    assert str(run) in answer.err
    assert [*tmp_path.rglob("*")] == before


def test_resume_needs_to_know_which_run():
    answer = recsys("train", "--model", "sasrec", "--data", "sample", "--resume")
    assert answer.code == 2
    assert "--resume needs --out" in answer.err
