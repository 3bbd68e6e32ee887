"""Training steps of several models, batch by batch in turn.

On a machine whose speed wavers, trainings one after the other differ by more than what is compared:
here every model meets the same moments of it, and the fastest pass counts for each batch.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from recsys.batch import Batch
from recsys.models.base import SequenceModel
from recsys.training.losses import Softmax
from recsys.training.objectives import NextItem, next_item
from recsys.training.optimizers import adamw
from recsys.training.trainer import Precision, precision

Step = Callable[[Batch], None]


def full_softmax(num_items: int, wish: Precision, device: torch.device) -> NextItem:
    """The objective that is compared."""
    counts = torch.ones(num_items + 1, dtype=torch.int64)
    return next_item(Softmax(), counts, precision(wish, device), everywhere=wish == "bf16")


def training_step(model: SequenceModel, num_items: int, wish: Precision = "auto") -> Step:
    """A training step with the full softmax, as the trainer's."""
    model.train()
    optimizer = adamw(model, 1e-3, 0.01)
    objective = full_softmax(num_items, wish, torch.device("cpu"))

    def step(batch: Batch) -> None:
        objective(model, batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def in_turn(
    steps: Mapping[str, Step], batches: Sequence[Batch], passes: int
) -> dict[str, list[float]]:
    """Of each step by name, the seconds for every batch: the fastest of the passes."""
    took = {name: [math.inf] * len(batches) for name in steps}
    for _ in range(passes):
        for i, batch in enumerate(batches):
            for name, step in steps.items():
                started = time.perf_counter()
                step(batch)
                took[name][i] = min(took[name][i], time.perf_counter() - started)
    return took
