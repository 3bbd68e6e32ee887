"""HSTU (Zhai et al. 2024) as a recommender of the next item."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.layers.block import Stack
from recsys.layers.dropout import Dropout
from recsys.layers.hstu import HSTUBlock
from recsys.layers.item_encoder import ItemTable
from recsys.layers.mixer import State
from recsys.layers.window import Window
from recsys.models.base import SequenceModel


class HSTURec(SequenceModel):
    """Stacked HSTU units over items with learned positions; the item table serves both ends.

    Time is that between events of the history, of a log with timestamps. The paper's own code also
    shows a query the time of the item that it asks for: a service does not know it, nor does this.
    """

    paper = "Zhai et al., Actions Speak Louder than Words, ICML 2024"
    good_at = "dense logs, with timestamps where there are; long histories and many layers"
    cost = "layers (5 dim^2 + 2 T dim) products; state max_len (16 + layers (8 dim + 8)) bytes"

    @dataclass(frozen=True)
    class Config:
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 2
        """HSTU units."""
        num_heads: int = 2
        """Attention heads a block; must divide dim."""
        max_len: int = 50
        """Longest history in items; older items are not seen."""
        dropout: float = 0.2
        """Share of values dropped in embeddings and in the units, in [0, 1)."""

        def __post_init__(self) -> None:
            if min(self.dim, self.num_layers, self.num_heads, self.max_len) < 1:
                raise InputError(f"model sizes must be at least 1, got {self}")
            if self.dim % self.num_heads:
                raise InputError(
                    f"model.dim must be a multiple of model.num_heads, got {self.dim} and"
                    f" {self.num_heads}"
                )
            if not 0 <= self.dropout < 1:
                raise InputError(f"model.dropout must lie in [0, 1), got {self.dropout}")

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        self.items = ItemTable(num_items, config.dim)
        self.positions = nn.Embedding(config.max_len, config.dim)
        self.blocks = Stack(
            HSTUBlock(config.dim, config.num_heads, config.dropout, config.max_len)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.positions.weight, std=0.1)

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] a vector for each position, from the items up to and including it."""
        steps_T = torch.arange(batch.items_BT.shape[1], device=batch.items_BT.device)
        x_BTD = self.dropout(self.items(batch.items_BT) + self.positions(steps_T))
        return self.norm(self.blocks(x_BTD, batch.timestamps_BT))

    def item_vectors(self) -> Tensor:
        """[V+1, D] the item table."""
        return self.items.weight

    def init_state(self, batch_size: int) -> State:
        """The last max_len items, with times, keys and values while no item has been lost:
        max_len (16 + num_layers (8 dim + 8)) bytes a history."""
        window = Window.empty(batch_size, self.max_len, self.items.weight.device)
        return window, self.blocks.init_state(batch_size)

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(query [B, D] of the history with items_B int64 [B] behind it, the new state).

        Costs one position up to max_len items. Beyond them every item changes its position with
        each event, and the last max_len are encoded anew.
        """
        window, blocks = Window(*state[0]), state[1]
        place_B = window.count_B.clamp_max(self.max_len - 1)
        window = window.push(items_B, times_B)
        x_BD = self.dropout(self.items(items_B) + self.positions(place_B))
        x_BD, blocks = self.blocks.step(x_BD, blocks, times_B)
        query_BD = self.norm(x_BD)
        moved_B = window.overfull_B
        if moved_B.any():
            last = window.batch(moved_B, times_B is not None)
            query_BD = query_BD.index_put((moved_B,), self.query(last))
        return query_BD, (window, blocks)


MODEL = HSTURec
