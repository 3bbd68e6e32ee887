"""Blocks that need no positions: what they keep of a history has one size, however long it is."""

from collections.abc import Iterable

from torch import Tensor, nn

from recsys.layers.block import Stack
from recsys.layers.dropout import Dropout
from recsys.layers.item_encoder import ItemEncoder, ItemTable
from recsys.layers.mixer import Mixer, State


class RecurrentEncoder(nn.Module):
    """Item vectors through `blocks` and a norm; as a whole, or event by event."""

    def __init__(self, num_items: int, dim: int, dropout: float, blocks: Iterable[Mixer]):
        super().__init__()
        self.items: ItemEncoder = ItemTable(num_items, dim)
        self.dropout = Dropout(dropout)
        self.blocks = Stack(blocks)
        self.norm = nn.LayerNorm(dim)

    def forward(self, items_BT: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] of int64 items and times [B, T]."""
        return self.norm(self.blocks(self.dropout(self.items(items_BT)), times_BT))

    def init_state(self, batch_size: int) -> State:
        """That of the blocks."""
        return self.blocks.init_state(batch_size)

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D] behind the events items_B int64 [B], the new state)."""
        x_BD, state = self.blocks.step(self.dropout(self.items(items_B)), state, times_B)
        return self.norm(x_BD), state
