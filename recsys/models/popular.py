"""Popularity: everybody gets the items bought most, of all time or of the last days."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.models.base import CountingModel, Scorer


class Popular(CountingModel):
    """Scores an item by how often it occurs in training."""

    paper = "baseline"
    good_at = "new users, and as the bar every model must clear"
    cost = "one count; no state"

    @dataclass(frozen=True)
    class Config:
        """Settings named model.* on the command line."""

        days: float | None = None
        """Count only the last so many days of training; all of it where not given."""

        def __post_init__(self) -> None:
            if self.days is not None and not self.days > 0:
                raise InputError(f"model.days must be above 0, got {self.days}")

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.days = config.days
        self.counts_V: Tensor
        self.register_buffer("counts_V", torch.zeros(num_items + 1))

    def fit(self, items: Tensor, offsets: Tensor, ages: Tensor) -> None:
        """Count the items, all or those not older than `days`."""
        counted = items if self.days is None else items[ages <= self.days]
        self.counts_V = torch.bincount(counted, minlength=len(self.counts_V)).float()

    def scorer(self) -> Scorer:
        """The same scores for every history."""
        return lambda batch: _for_each(self.counts_V, batch)


def _for_each(scores_V: Tensor, batch: Batch) -> Tensor:
    return scores_V.repeat(len(batch.lengths_B), 1)


MODEL = Popular
