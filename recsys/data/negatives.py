"""Negative items for sampled losses, with the logarithm of how likely each was to be drawn."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NegativeKind = Literal["uniform", "popularity", "in_batch", "in_batch_and_popularity"]
SHARED_NEGATIVES: tuple[NegativeKind, ...] = ("in_batch", "in_batch_and_popularity")
"""Those in which the targets of a batch are negatives of each other."""


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
        if self.kind == "in_batch":
            items = target_N
        elif self.kind == "in_batch_and_popularity":
            items = torch.cat([target_N, self._drawn(target_N, generator)])
        else:
            items = self._drawn(target_N, generator)
        num_pairs = len(target_N)
        log_q, target_log_q_N = (self._log_draws(x, num_pairs) for x in (items, target_N))
        return Negatives(items, log_q, target_log_q_N)

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

    def _log_draws(self, items: Tensor, num_pairs: int) -> Tensor:
        """Log of how often each of `items` is expected among the negatives of so many pairs."""
        if self.kind not in ("in_batch", "in_batch_and_popularity"):
            return self._log_of_drawn(items)
        in_batch = self._log_target_V.to(items.device)[items] + math.log(num_pairs)
        if self.kind == "in_batch":
            return in_batch
        return torch.logaddexp(in_batch, self._log_of_drawn(items))

    def _log_of_drawn(self, items: Tensor) -> Tensor:
        return self._log_q_V.to(items.device)[items] + math.log(self.num_negatives)


def _shares(weights_V: Tensor) -> Tensor:
    """[V+1] the weights of items 1..V as parts of one; padding has none."""
    weights_V = weights_V * (torch.arange(len(weights_V)) > 0)
    return weights_V / weights_V.sum()
