"""Batch: the one structure that travels from the loader to a model.

Dimension letters, used in names all over the project: B batch, T time, D model width, H heads, V
items of the catalogue (ids 1..V; a table over them has V+1 rows, row 0 is padding), N query/target
pairs, S negatives, K length of a list.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PAD = 0
"""Item id that fills the end of a short history. Real items are numbered from 1."""


@dataclass(frozen=True)
class Batch:
    """Histories of B users, oldest item first, right-padded with PAD to the longest of them."""

    items_BT: Tensor
    """int64 item ids; PAD behind the end of a history."""
    lengths_B: Tensor
    """int64 number of real items in each row, at least 1."""
    timestamps_BT: Tensor | None = None
    """int64 times in the unit of the data set; 0 behind the end of a history."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        times = self.timestamps_BT
        return Batch(
            self.items_BT.to(device, non_blocking=True),
            self.lengths_B.to(device, non_blocking=True),
            None if times is None else times.to(device, non_blocking=True),
        )

    @property
    def real_BT(self) -> Tensor:
        """bool, True where an item is real and not padding."""
        steps_T = torch.arange(self.items_BT.shape[1], device=self.items_BT.device)
        return steps_T < self.lengths_B[:, None]
