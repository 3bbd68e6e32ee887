"""Milliseconds of `Retriever.recommend` for one user, and what start-up costs.

python benchmarks/serving.py RUN
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from machine import emit

from recsys import Retriever

CALLS = 300
STARTS = 9


def latency(run: Path) -> None:
    """Median of CALLS calls, each with another history of 50 items."""
    retriever = Retriever.load(run)
    random = np.random.default_rng(0)
    size = len(retriever.vocab)
    histories = [
        retriever.vocab.decode(random.choice(size, 50, replace=False) + 1) for _ in range(CALLS)
    ]
    for history in histories[:20]:
        retriever.recommend(history, k=10)
    times = []
    for history in histories:
        started = time.perf_counter()
        retriever.recommend(history, k=10)
        times.append((time.perf_counter() - started) * 1e3)
    emit(
        "recommend one user of 50 items, top 10",
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
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    start_up()
    latency(Path(sys.argv[1]))
