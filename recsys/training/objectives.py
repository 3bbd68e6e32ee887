"""Objectives: (model, batch) -> (loss, logs). All that the trainer calls."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.data.negatives import NegativeSampler
from recsys.models.base import SequenceModel
from recsys.training.losses import Loss, Softmax


class Objective(Protocol):
    """What a training step minimises."""

    def __call__(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """([] loss, the mean over pairs; logs, in which `pairs` is the weight of the batch)."""
        ...


@dataclass(frozen=True)
class NextItem:
    """The model's own training pairs under one loss."""

    loss: Loss
    sampler: NegativeSampler | None
    generator: torch.Generator
    """Where negatives are drawn from; the trainer saves the default generator's state."""
    dtype: torch.dtype
    """Of matrix products. On a CPU bfloat16 serves the loss alone: the model's own products are
    small there, gain little, and leave a compiled kernel in memory for every shape they meet."""

    def __call__(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """([] loss, {"pairs": N})."""
        device, low = batch.items_BT.device.type, self.dtype != torch.float32
        with torch.autocast(device, self.dtype, enabled=low and device != "cpu"):
            pairs = model.training_pairs(batch)
        negatives = self.sampler.draw(pairs.target_N, self.generator) if self.sampler else None
        with torch.autocast(device, self.dtype, enabled=low):
            loss = self.loss(pairs, model.item_vectors(), negatives)
        return loss, {"pairs": float(len(pairs.target_N))}


def next_item(loss: Loss, item_counts: Tensor, dtype: torch.dtype = torch.float32) -> NextItem:
    """The objective for a loss, with the sampler that its settings ask for.

    item_counts int64 [V+1]: how often each item occurs in training.
    """
    sampler = None
    if not isinstance(loss, Softmax):
        sampler = NegativeSampler(
            loss.negatives, loss.num_negatives, loss.per_pair, item_counts, loss.alpha
        )
    return NextItem(loss, sampler, torch.default_generator, dtype)
