"""Batches from histories: vectorised, length-bucketed, seeded and resumable at any batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from recsys.batch import PAD, Batch
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Histories, Queries

BUCKET_BATCHES = 16
"""Batches that are filled by length from one random pool. Larger pools pad less and mix less."""


def collate(dataset: SequenceDataset, start_B: np.ndarray, end_B: np.ndarray) -> Batch:
    """The histories items[start:end] as one right-padded batch, trimmed to the longest of them."""
    lengths_B = end_B - start_B
    steps_T = np.arange(lengths_B.max())
    position_BT = np.minimum(start_B[:, None] + steps_T, end_B[:, None] - 1)
    real_BT = steps_T < lengths_B[:, None]
    items_BT = np.where(real_BT, dataset.items[position_BT], PAD).astype(np.int64)
    times_BT = None
    if dataset.timestamps is not None:
        times_BT = torch.from_numpy(np.where(real_BT, dataset.timestamps[position_BT], 0))
    return Batch(torch.from_numpy(items_BT), torch.from_numpy(lengths_B), times_BT)


def flat_positions(start_B: np.ndarray, end_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, position) of everything in start:end of each row, rows in order."""
    lengths_B = end_B - start_B
    row = np.repeat(np.arange(len(lengths_B)), lengths_B)
    first = np.cumsum(lengths_B) - lengths_B
    return row, np.arange(len(row)) + (start_B - first)[row]


def windows(
    histories: Histories, max_items: int, random: np.random.Generator | None = None
) -> Histories:
    """Histories cut into windows of at most `max_items` (at least 2), the last ones first.

    Windows overlap by one item: every item behind the first of a history is a target just once.
    The last window is full; with `random` it is cut as well as the first, at a random place that
    leaves as many windows.
    """
    stride = max_items - 1
    lengths = histories.end - histories.start
    counts = np.maximum(1, -(-(lengths - 1) // stride))
    row, place = flat_positions(np.zeros_like(counts), counts)
    end = histories.end[row] - place * stride
    if random is not None:
        end += random.integers(0, counts * stride - lengths + 1, endpoint=True)[row]
    start = np.maximum(histories.start[row], end - max_items)
    return Histories(histories.user[row], start, np.minimum(histories.end[row], end))


@dataclass(frozen=True)
class TrainLoader:
    """Every training history once an epoch, cut from the left to its last `max_items`, or all of it
    in windows that lie elsewhere in every epoch.

    The order of an epoch depends on (seed, epoch) alone, so training can go on at any batch.
    Under several processes each takes every `world_size`-th batch, and all the same number of them.
    """

    dataset: SequenceDataset
    histories: Histories
    batch_size: int
    max_items: int
    seed: int
    rank: int = 0
    world_size: int = 1
    moving_windows: bool = False

    def __len__(self) -> int:
        """Batches an epoch, for this process."""
        return -(-self._num_batches // self.world_size)

    @cached_property
    def _num_batches(self) -> int:
        return -(-len(self._cut(0)[0]) // self.batch_size)

    def _cut(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) of what an epoch sees, in every epoch as many."""
        histories = self.histories
        if self.moving_windows:
            random = np.random.default_rng([self.seed, epoch, 1])
            histories = windows(histories, self.max_items, random)
        # A history of one item has no next item to learn.
        usable = histories.end - histories.start >= 2
        end = histories.end[usable]
        return np.maximum(histories.start[usable], end - self.max_items), end

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_batch` on."""
        start, end = self._cut(epoch)
        batches = self._batches(end - start, epoch)
        own = [
            batches[i % len(batches)]
            for i in range(self.rank, len(self) * self.world_size, self.world_size)
        ]
        for rows in own[first_batch:]:
            yield collate(self.dataset, start[rows], end[rows])

    def _batches(self, lengths: np.ndarray, epoch: int) -> list[np.ndarray]:
        """Row numbers of each batch: random pools, sorted by length, cut, and shuffled again."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(lengths))
        pool = self.batch_size * BUCKET_BATCHES
        batches = []
        for first in range(0, len(order), pool):
            rows = order[first : first + pool]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]


def query_batches(
    dataset: SequenceDataset, queries: Queries, batch_size: int, max_items: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers of the queries, their histories cut to the last `max_items`), shortest first."""
    start = np.maximum(queries.start, queries.end - max_items)
    order = np.argsort(queries.end - start, kind="stable")
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        yield rows, collate(dataset, start[rows], queries.end[rows])
