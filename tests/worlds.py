"""Small worlds with known answers."""

import numpy as np

from recsys.data.sequences import SequenceDataset


def world(histories: list[list[int]], num_items: int | None = None) -> SequenceDataset:
    """A data set from lists of item numbers, one a user."""
    items = np.concatenate([np.asarray(history) for history in histories])
    offsets = np.cumsum([0, *map(len, histories)])
    return SequenceDataset.from_arrays(items, offsets, num_items=num_items, name="world")


def cycle_world(num_items: int = 12, users: int = 96, length: int = 9) -> SequenceDataset:
    """Item i is always followed by i + 1, and the last one by the first."""
    return world(
        [[(user + step) % num_items + 1 for step in range(length)] for user in range(users)]
    )
