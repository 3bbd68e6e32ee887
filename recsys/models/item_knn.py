"""Next-item co-occurrence: what followed the items of this history in other histories."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.models.base import CountingModel, Scorer, check_sizes


class ItemKNN(CountingModel):
    """Scores j by the sum, over the last items i of a history, of recency times weight(i -> j).

    weight(i -> j) sums decay^(d-1) over all training pairs in which j stands d places behind i.
    The strongest `num_neighbours` of each item are kept.
    """

    paper = (
        "baseline; Garg et al., Sequence and Time Aware Neighborhood (STAN), SIGIR 2019, simplified"
    )
    good_at = "no training time at all; hard to beat on sparse purchases"
    cost = "window num_neighbours additions; no state"

    @dataclass(frozen=True)
    class Config:
        """Settings named model.* on the command line."""

        num_neighbours: int = 100
        """Followers kept for each item."""
        window: int = 5
        """Largest distance between two items that are counted as a pair, in items."""
        decay: float = 0.5
        """What a pair or a history item loses with each place of distance, in (0, 1]."""

        def __post_init__(self) -> None:
            check_sizes(self)
            if not 0 < self.decay <= 1:
                raise InputError(f"model.decay must lie in (0, 1], got {self.decay}")

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.config = config
        shape = (num_items + 1, min(config.num_neighbours, num_items))
        self.neighbours_VK: Tensor
        self.weights_VK: Tensor
        self.register_buffer("neighbours_VK", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("weights_VK", torch.zeros(shape))

    def fit(self, items: Tensor, offsets: Tensor, ages: Tensor) -> None:
        """Count pairs and keep the strongest of each item."""
        rows, num_neighbours = self.neighbours_VK.shape
        keys, weights = _count_pairs(items.numpy(), offsets.numpy(), rows, self.config)
        source, target = keys // rows, keys % rows
        order = np.lexsort((target, -weights, source))
        source, target, weights = source[order], target[order], weights[order]
        place = np.arange(len(source)) - np.searchsorted(source, source)
        kept = place < num_neighbours
        neighbours = np.zeros((rows, num_neighbours), dtype=np.int64)
        strength = np.zeros((rows, num_neighbours), dtype=np.float32)
        neighbours[source[kept], place[kept]] = target[kept]
        strength[source[kept], place[kept]] = weights[kept]
        self.neighbours_VK = torch.from_numpy(neighbours)
        self.weights_VK = torch.from_numpy(strength)

    def scorer(self) -> Scorer:
        """Adds up the followers of the last items of each history."""
        return self._score

    def _score(self, batch: Batch) -> Tensor:
        steps_T = torch.arange(batch.items_BT.shape[1], device=batch.items_BT.device)
        distance_BT = batch.lengths_B[:, None] - 1 - steps_T
        near_BT = batch.real_BT & (distance_BT < self.config.window)
        recency_BT = torch.where(
            near_BT, self.config.decay ** distance_BT.clamp_min(0).float(), 0.0
        )
        batch_size, num_items = len(batch.lengths_B), len(self.neighbours_VK)
        scores_BV = torch.zeros(batch_size, num_items, device=batch.items_BT.device)
        # Only the last `window` items of each row carry weight: gather those places and no others.
        rows, columns = near_BT.nonzero(as_tuple=True)
        last_N = batch.items_BT[rows, columns]
        value_NK = self.weights_VK[last_N] * recency_BT[rows, columns, None]
        flat_NK = rows[:, None] * num_items + self.neighbours_VK[last_N]
        scores_BV.view(-1).scatter_add_(0, flat_NK.view(-1), value_NK.view(-1))
        return scores_BV


def _count_pairs(
    items: np.ndarray, offsets: np.ndarray, rows: int, config: ItemKNN.Config
) -> tuple[np.ndarray, np.ndarray]:
    """(keys source * rows + target, summed weights) over all pairs within the window."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys: np.ndarray = np.empty(0, dtype=np.int64)
    weights: np.ndarray = np.empty(0)
    for distance in range(1, config.window + 1):
        pair = (user[:-distance] == user[distance:]) & (items[:-distance] != items[distance:])
        key = items[:-distance][pair].astype(np.int64) * rows + items[distance:][pair]
        key, count = np.unique(key, return_counts=True)
        merged, place = np.unique(np.concatenate([keys, key]), return_inverse=True)
        summed = np.concatenate([weights, count * config.decay ** (distance - 1)])
        keys, weights = merged, np.bincount(place, weights=summed, minlength=len(merged))
    return keys, weights


MODEL = ItemKNN
