"""Objectives: (model, batch) -> (loss, logs). All that the trainer calls."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.batch import Batch
from recsys.data.negatives import NegativeSampler
from recsys.models.base import ReadsTexts, SequenceModel
from recsys.training.losses import AnyLoss, Loss, MLMContrastive, Softmax


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
    """Of matrix products: on a GPU of all, on a CPU of the loss and of a model that reads texts."""
    everywhere: bool = False
    """On a CPU as well, the products of every model are in `dtype`. At length 200 SASRec and LRURec
    are faster by a third so, at 50 hardly; each shape of batch leaves a compiled kernel in memory.
    """

    def __call__(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """([] loss, {"pairs": N})."""
        device, low = batch.items_BT.device.type, self.dtype != torch.float32
        encoder_low = low and (device != "cpu" or self.everywhere or model.reads_tokens)
        with torch.autocast(device, self.dtype, enabled=encoder_low):
            pairs = model.training_pairs(batch)
        negatives = self.sampler.draw(pairs.target_N, self.generator) if self.sampler else None
        with torch.autocast(device, self.dtype, enabled=low):
            loss = self.loss(pairs, model.item_vectors(), negatives)
        return loss, {"pairs": float(len(pairs.target_N))}


def next_item(
    loss: Loss,
    item_counts: Tensor,
    dtype: torch.dtype = torch.float32,
    everywhere: bool = False,
) -> NextItem:
    """The objective for a loss, with the sampler that its settings ask for.

    item_counts int64 [V+1]: how often each item occurs in training.
    """
    sampler = None
    if not isinstance(loss, Softmax):
        sampler = NegativeSampler(
            loss.negatives, loss.num_negatives, loss.per_pair, item_counts, loss.alpha
        )
    return NextItem(loss, sampler, torch.default_generator, dtype, everywhere)


@dataclass(frozen=True)
class TextPretraining:
    """Histories find the text of their next item among those of the batch, and hidden words."""

    loss: MLMContrastive
    dtype: torch.dtype
    """Of matrix products."""

    def __call__(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """([] loss, {"pairs": N})."""
        assert isinstance(model, ReadsTexts)
        with torch.autocast(
            batch.items_BT.device.type, self.dtype, enabled=self.dtype != torch.float32
        ):
            found = model.pretraining(batch, self.loss.mask_rate)
        score_NN = found.query_ND.float() @ found.target_ND.float().T
        # The same text twice in a batch is no negative of itself.
        same_NN = found.target_N[:, None] == found.target_N
        same_NN.fill_diagonal_(False)
        contrast = F.cross_entropy(
            score_NN.masked_fill(same_NN, -math.inf),
            torch.arange(len(score_NN), device=score_NN.device),
        )
        words = F.cross_entropy(found.word_MW.float(), found.label_M)
        return contrast + self.loss.mlm_weight * words, {"pairs": float(len(found.target_N))}


def objective_of(
    loss: AnyLoss, item_counts: Tensor, dtype: torch.dtype, everywhere: bool
) -> Objective:
    """What a loss asks of the trainer; the rest as for `next_item`."""
    if isinstance(loss, MLMContrastive):
        return TextPretraining(loss, dtype)
    return next_item(loss, item_counts, dtype, everywhere)
