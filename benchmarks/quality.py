"""What the recipes reach, through the command line; the numbers in README and recipe docstrings.

RECSYS_DATA=… python benchmarks/quality.py sasrec_beauty sasrec_beauty-refit sasrec_ml100k
"""

import json
import sys
import tempfile
from pathlib import Path

from machine import emit, read_lines, recsys, source

CASES = {
    "sasrec_beauty": ("beauty", "sasrec_beauty", []),
    "sasrec_beauty-refit": ("beauty", "sasrec_beauty", ["--refit"]),
    "sasrec_ml100k": ("ml100k", "sasrec_ml100k", []),
    "sasrec_ml100k-refit": ("ml100k", "sasrec_ml100k", ["--refit"]),
}
"""Data, recipe and further options of each case."""


def measure(case: str) -> None:
    """Train one case in a folder that is removed again."""
    data, recipe, options = CASES[case]
    with tempfile.TemporaryDirectory() as place:
        folder, run = Path(place) / "data", Path(place) / "run"
        recsys("data", "prepare", source(data), "--out", folder)
        recsys(
            "train",
            "--model",
            "sasrec",
            "--data",
            folder,
            "--recipe",
            recipe,
            "--out",
            run,
            *options,
        )
        history = read_lines(run / "history.jsonl")
        result = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    emit(
        f"quality {case}",
        {
            "data": result["data"],
            "protocol": result["protocol"],
            "epochs": len(history),
            "seconds": round(sum(record["seconds"] for record in history)),
            "metrics": {name: found["value"] for name, found in result["metrics"].items()},
            "ci95": {name: found["ci95"] for name, found in result["metrics"].items()},
            "baselines": result["baselines"],
        },
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        measure(name)
