"""Milliseconds of `Retriever.recommend` for one user, and seconds that start-up costs.

RECSYS_DATA=… python benchmarks/serving.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import emit, recsys, source

from recsys import Retriever

CALLS = 1000
STARTS = 9
ITEMS = 50


def latency(dim: int) -> None:
    """Median of CALLS calls, each with another history of 50 Beauty items, after one epoch."""
    with tempfile.TemporaryDirectory() as place:
        data, run = Path(place) / "data", Path(place) / "run"
        recsys("data", "prepare", source("beauty"), "--out", data)
        options = ("--set", f"model.dim={dim}", "--set", "trainer.epochs=1")
        recsys("train", "--model", "sasrec", "--data", data, "--out", run, *options)
        retriever = Retriever.load(run)
    random = np.random.default_rng(0)
    size = len(retriever.vocab)
    histories = [
        retriever.vocab.decode(random.choice(size, ITEMS, replace=False) + 1) for _ in range(CALLS)
    ]
    for history in histories[:50]:
        retriever.recommend(history, k=10)
    times = []
    for history in histories:
        started = time.perf_counter()
        retriever.recommend(history, k=10)
        times.append((time.perf_counter() - started) * 1e3)
    emit(
        f"recommend one user of {ITEMS} items, top 10, dim {dim}",
        {
            "items": size,
            "median_ms": round(statistics.median(times), 3),
            "p99_ms": round(float(np.quantile(times, 0.99)), 3),
        },
    )


def start_up() -> None:
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
    emit("start-up, seconds; `import recsys` imports no torch", figures)


if __name__ == "__main__":
    start_up()
    for width in (64, 128):
        latency(width)
