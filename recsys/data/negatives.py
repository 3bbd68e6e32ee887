"""Negative items for sampled losses, with the logarithm of how likely each was to be drawn."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NegativeKind = Literal["uniform", "popularity", "in_batch"]


@dataclass(frozen=True)
class Negatives:
    """S items to tell the target from, shared by all pairs or drawn for each."""

    items: Tensor
    """int64 [S] (shared) or [N, S] (per pair)."""
    log_q: Tensor
    """float32, same shape: log of the expected number of draws of the item, log(S q(item))."""
    target_log_q: Tensor
    """float32 [N]: the same for each pair's target."""


class NegativeSampler:
    """Draws negatives from the catalogue 1..V by a fixed distribution, or from the batch's targets.

    `item_counts` int64 [V+1]: how often each item occurs in training (row 0 is padding). Popularity
    is that count; an item never seen counts as seen once. `num_negatives` (S) is not used by
    in_batch, whose negatives are the batch's own targets.
    """

    def __init__(self, kind: NegativeKind, num_negatives: int, per_pair: bool, item_counts: Tensor):
        self.kind = kind
        self.num_negatives = num_negatives
        self.per_pair = per_pair
        weights = item_counts.to(torch.float64).clamp_min(1)
        if kind == "uniform":
            weights = torch.ones_like(weights)
        weights[0] = 0
        q_V = weights / weights.sum()
        self._log_q_V = q_V.log().float()
        self._cumulative_V = q_V.cumsum(0)

    def draw(self, target_N: Tensor, generator: torch.Generator) -> Negatives:
        """Negatives for pairs with these targets; drawn on the CPU, returned beside the targets."""
        device = target_N.device
        log_q_V = self._log_q_V.to(device)
        if self.kind == "in_batch":
            log_q_N = log_q_V[target_N] + math.log(len(target_N))
            return Negatives(target_N, log_q_N, log_q_N)
        shape = (len(target_N), self.num_negatives) if self.per_pair else (self.num_negatives,)
        if self.kind == "uniform":
            items = torch.randint(1, len(log_q_V), shape, generator=generator)
        else:
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
            items = torch.searchsorted(self._cumulative_V, uniform, right=True)
            items = items.clamp(1, len(log_q_V) - 1)
        items = items.to(device)
        log_s = math.log(self.num_negatives)
        return Negatives(items, log_q_V[items] + log_s, log_q_V[target_N] + log_s)
