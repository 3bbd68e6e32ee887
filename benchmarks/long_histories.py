"""Histories ten times longer than those of training: does a state that never ends stay useful?

    RECSYS_DATA=… python benchmarks/long_histories.py              (every recurrent model)
    RECSYS_DATA=… python benchmarks/long_histories.py lru_rec

MovieLens-1M, trained in windows of 50 films for some epochs; then the test targets of the users
with 500 events or more, asked for with the last 25 … all of their history before them. What
"Stuffed Mamba" (Chen et al. 2024) calls state collapse would show as quality that falls to the
right of 50.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from machine import emit, recsys, source, trained

from recsys.checkpoint import load_model
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Queries, SplitConfig, split
from recsys.eval.evaluator import evaluate
from recsys.layers.ssm import forget_faster
from recsys.models.base import Recommender, model_class

FOLDER = Path(__file__).parents[1] / "runs" / "long"
TRAINED, EPOCHS = 50, 12
SEEN = (25, 50, 100, 200, 500, 2500)
"""Events of a history that the model is given, the last ones; 2500 is all of them."""
RECURRENT = (
    "gru4rec",
    "lru_rec",
    "mamba_rec",
    "mingru_rec",
    "lssl_rec",
    "aaren_rec",
    "pararnn_rec",
)
"""Models whose state has one size, however long the history."""
FORGETFUL = ("mamba_rec",)
"""Those of them that `forget_faster` knows."""
FACTORS = (1.0, 1.25, 1.5, 2.0, 4.0)
SHAPE = {"dim": 64, "num_layers": 2, "dropout": 0.2, "max_len": TRAINED}


def run_of(name: str, data: Path) -> Path:
    """The run of a model, trained here if it is not there yet."""
    known = {field.name for field in dataclasses.fields(model_class(name).Config)}
    settings = [f"model.{key}={value}" for key, value in SHAPE.items() if key in known]
    settings += ["trainer.batch_size=128", "trainer.long_histories=windows"]
    settings += [f"trainer.epochs={EPOCHS}", "trainer.patience=0", "trainer.validate_every=4"]
    command = ["train", "--model", name, "--data", data]
    return trained(FOLDER / name, *command, settings=settings)


def measure(name: str, data: Path) -> dict[str, Any]:
    """NDCG@10 of the users with long histories, by how much of them the model is given.

    For a model whose states can be told to forget faster, the same behind that remedy, by the
    factor that is best for the valid targets of these users with their whole histories.
    """
    dataset = SequenceDataset.load(data)
    parts = split(dataset, SplitConfig())
    valid, test = (_of_long_histories(dataset, queries) for queries in (parts.valid, parts.test))
    run = run_of(name, data)
    found = {
        "users": len(test),
        "trained_on": TRAINED,
        "epochs": EPOCHS,
        "ndcg@10": {n: _ndcg(load_model(run), dataset, test, n) for n in SEEN},
    }
    if name in FORGETFUL:
        chosen = {f: _ndcg(_forgetful(run, f), dataset, valid, SEEN[-1]) for f in FACTORS}
        best = max(chosen, key=lambda factor: chosen[factor])
        found["valid ndcg@10 by factor"] = chosen
        found["factor"] = best
        found["ndcg@10 with factor"] = {
            n: _ndcg(_forgetful(run, best), dataset, test, n) for n in SEEN
        }
    return found


def _of_long_histories(dataset: SequenceDataset, queries: Queries) -> Queries:
    long = np.diff(dataset.offsets)[queries.user] >= 10 * TRAINED
    return Queries(queries.user[long], queries.start[long], queries.end[long])


def _forgetful(run: Path, factor: float) -> Any:
    model: Any = load_model(run)
    for block in model.blocks:
        forget_faster(block.mixer, factor)
    return model


def _ndcg(model: Recommender, dataset: SequenceDataset, queries: Queries, length: int) -> float:
    model.max_len = length
    return round(evaluate(model, dataset, queries).metrics([10])["ndcg@10"], 4)


if __name__ == "__main__":
    prepared = FOLDER / "data"
    if not prepared.exists():
        recsys("data", "prepare", source("ml1m"), "--out", prepared)
    for chosen in sys.argv[1:] or RECURRENT:
        figures = measure(chosen, prepared)
        emit(f"long histories {chosen}", figures, "long_histories.jsonl")
