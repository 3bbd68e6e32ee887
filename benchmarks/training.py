"""Seconds an epoch, seconds of an evaluation and peak memory, through the command line.

    RECSYS_DATA=… python benchmarks/training.py beauty-softmax beauty-bce ml100k-softmax

Run nothing beside it: on two cores a second busy process makes an epoch several times slower.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from machine import emit, read_lines, recsys, source

SHAPE = ["model.dim=64", "model.num_layers=2", "model.num_heads=2", "model.max_len=50"]
RECURRENT = ["model.dim=64", "model.num_layers=1", "model.max_len=50"]
LARGE, SMALL = ["trainer.batch_size=256"], ["trainer.batch_size=128"]
CASES = {
    "beauty-softmax": ("sasrec", "beauty", [*SHAPE, *LARGE, "loss.name=softmax"], 4),
    "beauty-bce": ("sasrec", "beauty", [*SHAPE, *LARGE, "loss.name=bce"], 4),
    "ml100k-softmax": ("sasrec", "ml100k", [*SHAPE, *SMALL, "loss.name=softmax"], 11),
    "beauty-gru4rec": ("gru4rec", "beauty", [*RECURRENT, *LARGE], 4),
    "ml100k-gru4rec": ("gru4rec", "ml100k", [*RECURRENT, *LARGE], 11),
    "beauty-bert4rec": ("bert4rec", "beauty", [*SHAPE, *SMALL], 4),
    "ml100k-bert4rec": ("bert4rec", "ml100k", [*SHAPE, *SMALL], 11),
}
"""Model, data, settings and epochs of each case; the first epoch warms up and is not counted."""


def measure(case: str) -> None:
    """Prepare, train and evaluate one case in a folder that is removed again."""
    model, data, settings, epochs = CASES[case]
    with tempfile.TemporaryDirectory() as place:
        folder, run = Path(place) / "data", Path(place) / "run"
        recsys("data", "prepare", source(data), "--out", folder)
        options = [part for setting in settings for part in ("--set", setting)]
        options += ["--set", f"trainer.epochs={epochs}"]
        recsys("train", "--model", model, "--data", folder, "--out", run, *options)
        history = read_lines(run / "history.jsonl")
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    seconds = [record["seconds"] for record in history[1:]]
    emit(
        f"train {case}",
        {
            "settings": settings,
            "epoch_seconds": round(statistics.median(seconds), 3),
            "epoch_seconds_range": [min(seconds), max(seconds)],
            "interactions_per_second": round(
                statistics.median(record["interactions_per_second"] for record in history[1:])
            ),
            "evaluation_seconds": metrics["seconds"],
            "evaluated_users": metrics["users"],
            "peak_rss_mb": history[-1]["peak_rss_mb"],
        },
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        measure(name)
