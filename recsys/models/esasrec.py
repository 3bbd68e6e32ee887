"""eSASRec (Tikhonovich et al. 2025): SASRec's next-item training with LiGR blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.layers.attention import CausalSelfAttention
from recsys.layers.block import Stack
from recsys.layers.dropout import Dropout
from recsys.layers.feedforward import SwiGLU
from recsys.layers.item_encoder import ItemTable
from recsys.layers.ligr import LiGRBlock
from recsys.layers.mixer import State
from recsys.layers.window import Window
from recsys.models.base import SequenceModel


class ESASRec(SequenceModel):
    """Causal attention and SwiGLU behind learned gates; the item table serves input and output.

    The paper trains it with a sampled softmax; which loss it meets is said by loss.name.
    """

    paper = "Tikhonovich et al., eSASRec: Enhancing Transformer-based Recommendations, RecSys 2025"
    good_at = "much data and deep stacks of blocks; the paper's loss is sampled_softmax"
    cost = "layers (18 dim^2 + 2 T dim) products; state max_len (16 + 8 layers dim) bytes"

    @dataclass(frozen=True)
    class Config:
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 2
        """LiGR blocks."""
        num_heads: int = 2
        """Attention heads a block; must divide dim."""
        max_len: int = 50
        """Longest history in items; older items are not seen."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; the paper's, 4 dim, where not given."""
        dropout: float = 0.2
        """Share of values dropped in embeddings, attention and branches, in [0, 1)."""

        def __post_init__(self) -> None:
            sizes = (self.dim, self.num_layers, self.num_heads, self.max_len)
            if min(sizes) < 1 or (self.hidden_dim is not None and self.hidden_dim < 1):
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
        hidden_dim = 4 * config.dim if config.hidden_dim is None else config.hidden_dim
        self.items = ItemTable(num_items, config.dim)
        self.positions = nn.Embedding(config.max_len, config.dim)
        self.blocks = Stack(
            LiGRBlock(
                config.dim,
                CausalSelfAttention(config.dim, config.num_heads, config.dropout, config.max_len),
                SwiGLU(config.dim, hidden_dim, config.dropout),
                config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.positions.weight, std=0.1)

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] a vector for each position, from the items up to and including it."""
        steps_T = torch.arange(batch.items_BT.shape[1], device=batch.items_BT.device)
        x_BTD = self.dropout(self.items(batch.items_BT) + self.positions(steps_T))
        return self.norm(self.blocks(x_BTD))

    def item_vectors(self) -> Tensor:
        """[V+1, D] the item table."""
        return self.items.weight

    def init_state(self, batch_size: int) -> State:
        """The last max_len items, with their keys and values while no item has been lost:
        max_len (16 + 8 num_layers dim) bytes a history."""
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
        x_BD, blocks = self.blocks.step(x_BD, blocks)
        query_BD = self.norm(x_BD)
        moved_B = window.overfull_B
        if moved_B.any():
            query_BD = query_BD.index_put((moved_B,), self.query(window.batch(moved_B, False)))
        return query_BD, (window, blocks)


MODEL = ESASRec
