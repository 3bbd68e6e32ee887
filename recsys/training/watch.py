"""Watching a training: the run folder it fills, the lines it prints, and requests to stop."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from recsys.checkpoint import HISTORY, STATE, WEIGHTS, write_lines, write_tensors
from recsys.errors import InputError
from recsys.training.trainer import Progress


class Reporter(Protocol):
    """Where a person reads how work goes. Everything lands on standard error."""

    def line(self, text: str) -> None:
        """One line of information."""
        ...

    def batch(self, epoch: int, batch: int, num_batches: int, loss: float) -> None:
        """A batch of an epoch is done; `loss` is the mean of the epoch so far."""
        ...

    def epoch(self, record: dict[str, Any], best_epoch: int) -> None:
        """An epoch is done."""
        ...

    def close(self) -> None:
        """The work is over, well or not: leave the terminal as it was."""
        ...


class PlainReporter:
    """Plain lines, for logs and pipes."""

    def line(self, text: str) -> None:
        """One line."""
        print(text, file=sys.stderr, flush=True)

    def batch(self, epoch: int, batch: int, num_batches: int, loss: float) -> None:
        """Batches are not worth a line each."""

    def epoch(self, record: dict[str, Any], best_epoch: int) -> None:
        """One line an epoch."""
        self.line(epoch_line(record, best_epoch))

    def close(self) -> None:
        """Plain lines leave nothing behind."""


class TerminalReporter:
    """A progress bar for the running epoch and a line for each finished one."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            console=self._console,
            transient=True,
        )
        self._task: Any = None

    def line(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def batch(self, epoch: int, batch: int, num_batches: int, loss: float) -> None:
        """Move the bar."""
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=num_batches, loss=loss)
        self._bar.update(
            self._task, description=f"epoch {epoch}", completed=batch, total=num_batches, loss=loss
        )

    def epoch(self, record: dict[str, Any], best_epoch: int) -> None:
        """Take the bar away and print the epoch."""
        self.close()
        self.line(epoch_line(record, best_epoch))

    def close(self) -> None:
        """Give the terminal back."""
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None


def epoch_line(record: dict[str, Any], best_epoch: int) -> str:
    """The record of an epoch as a person reads it."""
    text = (
        f"epoch {record['epoch']:>3}  loss {record['loss']:.4f}  {record['seconds']:.1f} s "
        f" {record['interactions_per_second']:,.0f} interactions/s"
    )
    valid = "  ".join(f"{name} {value:.4f}" for name, value in record.get("valid", {}).items())
    if valid:
        text += f"  valid {valid}" + ("  best" if best_epoch == record["epoch"] else "")
    return text


class StopRequest:
    """Set by Ctrl-C or a polite kill; training ends at its next step."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_on_signals(reporter: Reporter) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; the second interrupts at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return

    def ask(number: int, frame: object) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True
        reporter.line("stopping after this step; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class FolderWatcher:
    """Keeps a run folder up to date while a training goes on (a Watcher of the trainer).

    `stage` is "train" or "refit"; `earlier` holds the history records of the stages before it.
    Only the main process writes.
    """

    def __init__(
        self,
        run: Path,
        stage: str,
        earlier: list[dict[str, Any]],
        reporter: Reporter,
        stop: StopRequest,
        main: bool,
        tensorboard: bool,
    ):
        self.run, self.stage, self.reporter, self.stop = run, stage, reporter, stop
        self.main = main
        self._earlier = list(earlier)
        self._board = _board(run / "tensorboard" / stage) if tensorboard and main else None

    def batch(self, progress: Progress, num_batches: int) -> None:
        """Show how far the epoch is."""
        if self.main:
            loss = progress.loss_sum / max(progress.pairs, 1.0)
            self.reporter.batch(progress.epoch + 1, progress.batch, num_batches, loss)

    def epoch(self, record: dict[str, Any], history: list[dict[str, Any]], best_epoch: int) -> None:
        """Rewrite history.jsonl with one more line."""
        if not self.main:
            return
        lines = self._earlier + [{**line, "stage": self.stage} for line in history]
        write_lines(self.run / HISTORY, lines)
        self.reporter.epoch(record, best_epoch)
        if self._board is not None:
            self._board.add_scalar("loss", record["loss"], record["epoch"])
            for name, value in record.get("valid", {}).items():
                self._board.add_scalar(f"valid/{name}", value, record["epoch"])
            self._board.flush()

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Keep the state that resuming needs."""
        if self.main:
            meta = {"stage": self.stage, "earlier": self._earlier, "progress": meta}
            write_tensors(self.run / STATE, tensors, meta)

    def better(self, model: nn.Module) -> None:
        """Keep the best weights so far."""
        if self.main:
            write_tensors(self.run / WEIGHTS, model.state_dict())

    def stop_requested(self) -> bool:
        """True after Ctrl-C."""
        return self.stop.requested


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "trainer.tensorboard=true needs TensorBoard: pip install 'recsys[track]'"
        ) from None
    return SummaryWriter(str(folder))
