"""The last items of a history, for models that see so many and no more."""

from typing import NamedTuple

import torch
from torch import Tensor

from recsys.batch import PAD


class Window(NamedTuple):
    """The last W events of B histories that may differ in length."""

    items_BW: Tensor
    """int64, oldest first, PAD behind the end."""
    times_BW: Tensor
    """int64, as the items; 0 where times are not known."""
    count_B: Tensor
    """int64, events since the first; W of them are kept."""

    @staticmethod
    def empty(batch_size: int, size: int, device: torch.device) -> "Window":
        """No events yet."""
        none_BW = torch.full((batch_size, size), PAD, device=device)
        count_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return Window(none_BW, torch.zeros_like(none_BW), count_B)

    def push(self, items_B: Tensor, times_B: Tensor | None) -> "Window":
        """With one event more; a full window loses its oldest."""
        size = self.items_BW.shape[1]
        full_B1 = (self.count_B >= size)[:, None]
        place_BW = self.count_B.clamp_max(size - 1)[:, None] == torch.arange(
            size, device=items_B.device
        )
        times_B = torch.zeros_like(items_B) if times_B is None else times_B
        kept = (
            torch.where(full_B1, x_BW.roll(-1, dims=1), x_BW)
            for x_BW in (self.items_BW, self.times_BW)
        )
        items_BW, times_BW = (
            torch.where(place_BW, new_B[:, None], x_BW)
            for x_BW, new_B in zip(kept, (items_B, times_B), strict=True)
        )
        return Window(items_BW, times_BW, self.count_B + 1)

    @property
    def overfull_B(self) -> Tensor:
        """bool, True where events have been lost."""
        return self.count_B > self.items_BW.shape[1]
