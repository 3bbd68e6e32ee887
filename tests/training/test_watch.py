"""What a training leaves in its folder and says to a person, and how it is asked to stop."""

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from worlds import cycle_world

from recsys.checkpoint import HISTORY, STATE, WEIGHTS, read_tensors
from recsys.data.loader import TrainLoader
from recsys.data.split import SplitConfig, split
from recsys.errors import InputError, Interrupted
from recsys.models.sasrec import SASRec
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item
from recsys.training.trainer import Progress, Trainer, TrainerConfig
from recsys.training.watch import (
    FolderWatcher,
    PlainReporter,
    StopRequest,
    TerminalReporter,
    epoch_line,
    stop_on_signals,
)

RECORD = {"epoch": 7, "loss": 2.34567, "seconds": 1.26, "interactions_per_second": 12345.6}
VALIDATED = {**RECORD, "valid": {"hr@10": 0.5, "ndcg@10": 0.25}}
EARLIER = [{"epoch": 1, "loss": 9.0, "stage": "train"}]


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def line(self, text: str) -> None:
        self.told.append(text)

    def batch(self, epoch: int, batch: int, num_batches: int, loss: float) -> None:
        self.told.append((epoch, batch, num_batches, loss))

    def epoch(self, record: dict[str, Any], best_epoch: int) -> None:
        self.told.append((record["epoch"], best_epoch))


def watcher(run: Path, main: bool = True, tensorboard: bool = False) -> FolderWatcher:
    return FolderWatcher(run, "refit", EARLIER, Notes(), StopRequest(), main, tensorboard)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / HISTORY).read_text().splitlines()]


# ---- the run folder -----------------------------------------------------------------------------


def test_the_history_has_a_line_an_epoch_behind_those_of_earlier_stages(tmp_path: Path):
    watch, history = watcher(tmp_path), []
    for record in ({**RECORD, "epoch": 1}, {**VALIDATED, "epoch": 2}):
        history.append(record)
        watch.epoch(record, history, best_epoch=2)
        assert lines(tmp_path) == EARLIER + [{**line, "stage": "refit"} for line in history]
    assert watch.reporter.told == [(1, 2), (2, 2)]
    assert history == [{**RECORD, "epoch": 1}, {**VALIDATED, "epoch": 2}]


def test_a_saved_state_knows_its_stage_and_what_came_before(tmp_path: Path):
    watcher(tmp_path).save({"random.cpu": torch.get_rng_state()}, {"epoch": 3, "loss_sum": 0.1})
    tensors, meta = read_tensors(tmp_path / STATE)
    assert torch.equal(tensors["random.cpu"], torch.get_rng_state())
    assert meta == {
        "stage": "refit",
        "earlier": EARLIER,
        "progress": {"epoch": 3, "loss_sum": 0.1},
    }


def test_the_best_weights_replace_those_before(tmp_path: Path):
    watch = watcher(tmp_path)
    for _ in range(2):
        model = torch.nn.Linear(2, 3)
        watch.better(model)
        tensors, _ = read_tensors(tmp_path / WEIGHTS)
        assert tensors.keys() == {"weight", "bias"}
        assert torch.equal(tensors["weight"], model.weight)


def test_a_batch_is_told_with_the_mean_loss_of_its_epoch_so_far(tmp_path: Path):
    watch = watcher(tmp_path)
    watch.batch(Progress(epoch=2, batch=4, loss_sum=30.0, pairs=12.0), num_batches=9)
    assert watch.reporter.told == [(3, 4, 9, 2.5)]
    assert os.listdir(tmp_path) == []


def test_only_the_main_process_writes_and_speaks(tmp_path: Path):
    watch = watcher(tmp_path, main=False, tensorboard=True)
    watch.batch(Progress(), 1)
    watch.epoch(RECORD, [RECORD], best_epoch=7)
    watch.save({"x": torch.ones(1)}, {})
    watch.better(torch.nn.Linear(1, 1))
    assert os.listdir(tmp_path) == []
    assert watch.reporter.told == []


def test_tensorboard_gets_the_loss_and_the_validation_of_each_epoch(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = watcher(tmp_path, tensorboard=True)
    watch.epoch(RECORD, [RECORD], best_epoch=7)
    watch.epoch({**VALIDATED, "epoch": 8}, [RECORD], best_epoch=8)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "refit"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(7, pytest.approx(2.34567)), (8, pytest.approx(2.34567))]
    assert [(event.step, event.value) for event in events.Scalars("valid/ndcg@10")] == [(8, 0.25)]


def test_tensorboard_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'recsys\[track\]'"):
        watcher(tmp_path, tensorboard=True)


# ---- lines for a person -------------------------------------------------------------------------


def test_the_line_of_an_epoch():
    plain = "epoch   7  loss 2.3457  1.3 s  12,346 interactions/s"
    measured = plain + "  valid hr@10 0.5000  ndcg@10 0.2500"
    assert epoch_line(RECORD, best_epoch=7) == plain
    assert epoch_line(VALIDATED, best_epoch=3) == measured
    assert epoch_line(VALIDATED, best_epoch=7) == measured + "  best"


def test_plain_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]):
    reporter = PlainReporter()
    reporter.line("hello")
    reporter.batch(1, 2, 3, 0.5)
    reporter.epoch(VALIDATED, best_epoch=7)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"hello\n{epoch_line(VALIDATED, 7)}\n"


def test_lines_of_a_terminal_are_whole_and_not_read_as_markup(capsys: pytest.CaptureFixture[str]):
    reporter = TerminalReporter()
    long = "a path [red]in brackets[/red] " + "x" * 200
    reporter.line(long)
    for _ in range(2):
        reporter.batch(7, 1, 3, 0.5)
        reporter.epoch(VALIDATED, best_epoch=7)
    reporter.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if line.strip()] == [
        long,
        epoch_line(VALIDATED, 7),
        epoch_line(VALIDATED, 7),
    ]


# ---- requests to stop ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    reporter = Notes()
    with stop_on_signals(reporter) as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        (line,) = reporter.told
        assert line.startswith("stopping after this step")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_signals_mean_afterwards_what_they_meant_before():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    def fail() -> None:
        with stop_on_signals(Notes()):
            assert [signal.getsignal(number) for number in numbers] != before
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert [signal.getsignal(number) for number in numbers] == before


def test_outside_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGINT)

    def enter() -> bool:
        with stop_on_signals(Notes()) as stop:
            return signal.getsignal(signal.SIGINT) is before and not stop.requested

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result()


def test_ctrl_c_ends_a_training_with_a_state_to_go_on_from(tmp_path: Path):
    dataset = cycle_world()
    model = SASRec(SASRec.Config(dim=8, max_len=6), dataset.num_items)
    loader = TrainLoader(dataset, split(dataset, SplitConfig()).train, 16, 7, seed=0)
    objective = next_item(Softmax(), torch.ones(13, dtype=torch.int64))
    config = TrainerConfig(epochs=5)
    trainer = Trainer(model, objective, config, loader, Accelerator(cpu=True))

    def validate() -> dict[str, float]:
        if trainer.progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return {"ndcg@10": 0.5}

    with stop_on_signals(Notes()) as stop:
        watch = FolderWatcher(tmp_path, "train", [], Notes(), stop, True, False)
        with pytest.raises(Interrupted):
            trainer.fit(validate, watch)
    tensors, meta = read_tensors(tmp_path / STATE)
    assert meta["progress"]["epoch"] == 2
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2]
    again = Trainer(model, objective, config, loader, Accelerator(cpu=True))
    again.load_state(tensors, meta["progress"])
    assert again.fit(None, watcher(tmp_path)).epoch == 5
