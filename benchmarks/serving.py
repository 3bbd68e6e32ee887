"""The retriever inside a process: one user, event by event, all users, and what start-up costs.

    RECSYS_DATA=… python benchmarks/serving.py                          (all)
    RECSYS_DATA=… python benchmarks/serving.py user events all-users start-up

Beauty after one epoch; exact search; lines go to results/serving.jsonl. Asked of d = 64: one user
within 1 ms, an event and its list within 1 ms behind any history, all users within 3 s. Times are
of single calls, medians unless said otherwise. Run nothing beside it.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import emit, recsys, source

from recsys import Retriever
from recsys.retrieval.all_users import recommend_all
from recsys.retrieval.user_state import UserState

CALLS = 1000
STARTS = 9
ROUNDS = 5
"""Times that all users are answered."""
ITEMS = 50
STEPWISE = ("gru4rec", "lru_rec", "mingru_rec")
EVENTS = (10, 100, 1_000, 10_000)
"""Events behind a state before the one that is timed."""
FILE = "serving.jsonl"


def trained(folder: Path, model: str, dim: int = 64) -> Path:
    """The run of a model after one epoch on Beauty, in a folder that is shared by all models."""
    data, run = folder / "data", folder / f"{model}-{dim}"
    if not data.exists():
        recsys("data", "prepare", source("beauty"), "--out", data)
    options = ("--set", f"model.dim={dim}", "--set", "trainer.epochs=1")
    recsys("train", "--model", model, "--data", data, "--out", run, *options)
    return run


def milliseconds(calls: Sequence[Callable[[], Any]]) -> dict[str, float]:
    """Of each call alone, once the first twentieth of them was made to warm up."""
    for call in calls[: len(calls) // 20]:
        call()
    times = []
    for call in calls:
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    p50, p99 = np.quantile(times, (0.5, 0.99))
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def one_user(folder: Path) -> None:
    """CALLS calls, each with another history of 50 items."""
    for dim in (64, 128):
        retriever = Retriever.load(trained(folder, "sasrec", dim), index="exact")
        random = np.random.default_rng(0)
        size = len(retriever.vocab)
        numbers = [random.choice(size, ITEMS, replace=False) + 1 for _ in range(CALLS)]
        histories = [retriever.vocab.decode(items) for items in numbers]
        calls = [partial(retriever.recommend, history, k=10) for history in histories]
        emit(
            f"recommend one user of {ITEMS} items, top 10, dim {dim}",
            {"items": size, **milliseconds(calls)},
            FILE,
        )


def one_event(folder: Path) -> None:
    """`update` and `recommend_from_state` together, behind histories of several lengths."""
    for model in STEPWISE:
        retriever = Retriever.load(trained(folder, model), index="exact")
        random = np.random.default_rng(0)
        size = len(retriever.vocab)
        history = retriever.vocab.decode(random.integers(1, size + 1, max(EVENTS)))
        events = retriever.vocab.decode(random.integers(1, size + 1, CALLS))
        found = {}
        state = retriever.init_state()
        for count, item in enumerate(history, start=1):
            state = retriever.update(state, item)
            if count in EVENTS:
                assert state.events == count
                calls = [partial(answer_event, retriever, state, event) for event in events]
                found[str(count)] = milliseconds(calls)
        emit(
            f"one event and the top 10 behind it, {model}, dim 64, by length of history",
            {"model": model, "items": size, "events": found},
            FILE,
        )


def answer_event(retriever: Retriever, state: UserState, event: Any) -> None:
    """What a service does when an event comes in."""
    retriever.recommend_from_state(retriever.update(state, event), k=10)


def all_users(folder: Path) -> None:
    """In a process that has its retriever, and as a command from its start to its end."""
    run = trained(folder, "sasrec")
    retriever = Retriever.load(run, index="exact")
    report: dict[str, Any] = {}
    inside, whole = [], []
    for number in range(ROUNDS):
        out = folder / f"{number}.parquet"
        report = recommend_all(run, retriever, out, k=10, through="exact") or {}
        inside.append(report["seconds"])
        started = time.perf_counter()
        out = folder / f"command-{number}.parquet"
        recsys("recommend", run, "--all-users", "--out", out, "--through", "exact", "--json")
        whole.append(time.perf_counter() - started)
    emit(
        "recommend all users of Beauty, top 10, dim 64, into a Parquet file",
        {
            "users": report["users"],
            "rows": report["rows"],
            "recommend_all_seconds": round(statistics.median(inside), 3),
            "first_call_seconds": inside[0],
            "command_seconds": round(statistics.median(whole), 3),
            "rounds": ROUNDS,
        },
        FILE,
    )


def start_up(_folder: Path) -> None:
    """Median seconds of whole processes."""
    figures = {}
    for name, arguments in (
        ("recsys --help", ["-m", "recsys.cli", "--help"]),
        ("import recsys", ["-c", "import recsys"]),
        ("from recsys import Retriever", ["-c", "from recsys import Retriever"]),
        ("python itself", ["-c", "pass"]),
    ):
        times = []
        for _ in range(STARTS):
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        figures[name] = round(statistics.median(times), 3)
    code = "import sys, recsys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    emit("start-up, seconds; `import recsys` imports no torch", figures, FILE)


PARTS = {
    "start-up": start_up,
    "user": one_user,
    "events": one_event,
    "all-users": all_users,
}


def main(names: list[str]) -> None:
    """The parts named, or all of them."""
    if unknown := set(names) - set(PARTS):
        raise SystemExit(f"unknown {sorted(unknown)[0]!r}; parts are {', '.join(PARTS)}")
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as place:
            PARTS[name](Path(place))


if __name__ == "__main__":
    main(sys.argv[1:])
