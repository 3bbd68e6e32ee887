"""A new run beside the one that serves: loaded, tried, and only then taken over."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.checkpoint import HISTORY, LOCK, METRICS, STATE, WEIGHTS
from recsys.errors import InputError, WorkError
from recsys.retrieval.faiss_index import recall
from recsys.retrieval.histories import batch_of
from recsys.retrieval.snapshot import Snapshot

log = logging.getLogger("recsys.retrieval")
QUERIES = 32
_UNREAD = {HISTORY, "training.png", Path(STATE).parts[0], Path(LOCK).parts[0]}
"""Parts of a run folder that serving does not read."""
Mark = tuple[str, ...]
INDEX_RECALL = 0.5
"""Recall of the first ten, against exact search, below which an index is not fit to serve."""


@dataclass(frozen=True)
class Reload:
    """How one attempt to take over a run ended."""

    run: str
    """The folder."""
    took_over: bool
    """Whether it serves now."""
    reason: str | None
    """Why it was refused, else None."""
    model_version: str
    """What serves after the attempt."""
    dropped: int
    """Items of earlier upserts that the new model cannot know: it knows items by id alone."""
    seconds: float
    """What the attempt took."""


def self_test(new: Snapshot) -> None:
    """Ask a snapshot a few questions. InputError where what it says cannot be served."""
    random = np.random.default_rng(0)
    size = len(new.vocab)
    steps = min(5, new.model.max_len)
    histories = random.integers(1, size + 1, size=(QUERIES, steps)).tolist()
    times = [list(range(steps))] * QUERIES  # for models that see time
    batch = batch_of(histories, times, new.model.max_len)
    k = min(10, int(new.available_V.sum()))
    if k == 0:
        raise InputError("no item is available")
    found_BK, scores_BK = new.search(batch, k, None, new.available_V)
    if (found_BK == 0).any() or not np.isfinite(scores_BK).all():
        raise InputError("it answers with too few items, or with scores that are not numbers")
    if new.index is not None:
        best_BK, _ = new.with_index(None).search(batch, k, None, new.available_V)
        if (share := recall(found_BK, best_BK)) < INDEX_RECALL:
            raise InputError(f"its index finds {share:.0%} of what exact search finds")


class Watch:
    """Looks at a place every so often, and has a run that appears there taken over."""

    def __init__(
        self, place: Path, every_s: float, reload: Callable[[Path], Reload], known: Mark | None
    ):
        """Starts at once; `known` is the mark of what serves."""
        self.last: Reload | None = None
        self._place, self._every_s, self._reload = place, every_s, reload
        self._stop = threading.Event()
        self._known = known
        self._thread = threading.Thread(target=self._look, name="recsys-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more; returns once a reload that has begun is over."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(self._every_s):
            mark = mark_of(self._place)
            if mark is None or mark == self._known:
                continue
            self._known = mark
            self.last = self._reload(self._place)
            if self.last.took_over:
                log.info("serving %s from %s", self.last.model_version, self._place)
            else:
                log.error("refused %s: %s", self._place, self.last.reason)


def attempt(run: Path, served: Callable[[], str], take_over: Callable[[], int]) -> Reload:
    """Try to take a run over, which gives the number of items dropped; refusals are reported.

    Whatever goes wrong is a refusal: the old run serves on, and so does what watches.
    """
    started = time.perf_counter()
    reason, dropped = None, 0
    try:
        dropped = take_over()
    except (InputError, WorkError, OSError) as error:
        reason = str(error)
    except Exception as error:
        log.exception("a run broke while it was tried")
        reason = f"{type(error).__name__}: {error}"
    seconds = round(time.perf_counter() - started, 3)
    return Reload(str(run), reason is None, reason, served(), dropped, seconds)


def settled(place: Path) -> Path:
    """The folder that a place leads to now: a link may lead elsewhere while a run is read."""
    folder = place.resolve()
    return place if folder == place.absolute() else folder


def _is_read(name: str) -> bool:
    return not (name in _UNREAD or name.startswith(".") or name.endswith(".part"))


def mark_of(place: Path) -> Mark | None:
    """What changes when another complete run lies in a place, or a part of it that serving reads
    is another one; None while no complete run does."""
    try:
        run = place.resolve(strict=True)
        stats = {file.name: file.stat() for file in run.iterdir() if _is_read(file.name)}
    except OSError:
        return None
    if not {METRICS, WEIGHTS} <= stats.keys():
        return None
    marks = (f"{n} {s.st_ino} {s.st_size} {s.st_mtime_ns}" for n, s in sorted(stats.items()))
    return (str(run), *marks)
