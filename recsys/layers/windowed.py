"""Blocks over the last items of a history, each item at a learned position."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from recsys.layers.block import Stack
from recsys.layers.dropout import Dropout
from recsys.layers.item_encoder import ItemEncoder, ItemTable
from recsys.layers.mixer import Mixer, State
from recsys.layers.window import Window


class WindowedEncoder(nn.Module):
    """Item vectors and positions, through `blocks` and a norm; as a whole, or event by event.

    `items` gives the vectors of the items, `positions` those of the places, just as long at first
    as what is read of an item.
    """

    def __init__(
        self, num_items: int, dim: int, max_len: int, dropout: float, blocks: Iterable[Mixer]
    ):
        super().__init__()
        self.max_len = max_len
        table = ItemTable(num_items, dim, draw=False)
        self.items: ItemEncoder = table
        self.positions = nn.Embedding(max_len, dim)
        self.blocks = Stack(blocks)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        # Drawn behind the blocks: measured recipes depend on the order of the draws.
        table.draw()
        nn.init.normal_(self.positions.weight, std=0.1)

    def forward(self, items_BT: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] of int64 items and times [B, T], T at most max_len."""
        steps_T = torch.arange(items_BT.shape[1], device=items_BT.device)
        x_BTD = self.dropout(self._embed(items_BT, steps_T))
        return self.norm(self.blocks(x_BTD, times_BT))

    def init_state(self, batch_size: int) -> State:
        """The last max_len items, and the blocks' own state while no item has been lost."""
        window = Window.empty(batch_size, self.max_len, self.positions.weight.device)
        return window, self.blocks.init_state(batch_size)

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D] behind the events items_B int64 [B], the new state).

        Costs one position up to max_len items. Beyond them every item changes its position with
        each event, and the last max_len are encoded anew.
        """
        window, blocks = Window(*state[0]), state[1]
        place_B = window.count_B.clamp_max(self.max_len - 1)
        window = window.push(items_B, times_B)
        x_BD = self.dropout(self._embed(items_B, place_B))
        x_BD, blocks = self.blocks.step(x_BD, blocks, times_B)
        x_BD = self.norm(x_BD)
        moved_B = window.overfull_B
        if moved_B.any():
            times_NW = None if times_B is None else window.times_BW[moved_B]
            last_ND = self(window.items_BW[moved_B], times_NW)[:, -1]
            x_BD = x_BD.index_put((moved_B,), last_ND)
        return x_BD, (window, blocks)

    def _embed(self, items: Tensor, places: Tensor) -> Tensor:
        return self.items(items) + self.positions(places)
