"""Negative items for sampled losses, with the logarithm of how likely each was to be drawn."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NegativeKind = Literal["uniform", "popularity", "in_batch", "in_batch_and_popularity"]


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
    is that count to the power of `alpha`; an item never seen counts as seen once. `num_negatives`
    (S) is not used by in_batch, whose negatives are the batch's own targets. The negatives of
    in_batch_and_popularity are those targets and S drawn ones; it cannot draw for each pair.
    """

    def __init__(
        self,
        kind: NegativeKind,
        num_negatives: int,
        per_pair: bool,
        item_counts: Tensor,
        alpha: float = 1.0,
    ):
        self.kind = kind
        self.num_negatives = num_negatives
        self.per_pair = per_pair
        counts_V = item_counts.to(torch.float64).clamp_min(1)
        q_V = _shares(torch.ones_like(counts_V) if kind == "uniform" else counts_V**alpha)
        self._log_q_V = q_V.log().float()
        self._cumulative_V = q_V.cumsum(0)
        # Targets come as often as their items occur, whatever the power.
        self._log_target_V = _shares(counts_V).log().float()

    def draw(self, target_N: Tensor, generator: torch.Generator) -> Negatives:
        """Negatives for pairs with these targets; drawn on the CPU, returned beside the targets."""
        log_draws_V = self._log_draws(len(target_N)).to(target_N.device)
        if self.kind == "in_batch":
            items = target_N
        elif self.kind == "in_batch_and_popularity":
            items = torch.cat([target_N, self._drawn(target_N, generator)])
        else:
            items = self._drawn(target_N, generator)
        return Negatives(items, log_draws_V[items], log_draws_V[target_N])

    def _drawn(self, target_N: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(target_N), self.num_negatives) if self.per_pair else (self.num_negatives,)
        num_items = len(self._log_q_V) - 1
        if self.kind == "uniform":
            items = torch.randint(1, num_items + 1, shape, generator=generator)
        else:
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
            items = torch.searchsorted(self._cumulative_V, uniform, right=True)
            items = items.clamp(1, num_items)
        return items.to(target_N.device)

    def _log_draws(self, num_pairs: int) -> Tensor:
        """[V+1] log of how often an item is expected among the negatives of so many pairs."""
        batch_V = self._log_target_V + math.log(num_pairs)
        if self.kind == "in_batch":
            return batch_V
        drawn_V = self._log_q_V + math.log(self.num_negatives)
        if self.kind == "in_batch_and_popularity":
            return torch.logaddexp(batch_V, drawn_V)
        return drawn_V


def _shares(weights_V: Tensor) -> Tensor:
    """[V+1] the weights of items 1..V as parts of one; padding has none."""
    weights_V = weights_V * (torch.arange(len(weights_V)) > 0)
    return weights_V / weights_V.sum()
