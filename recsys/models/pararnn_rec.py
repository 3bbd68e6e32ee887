"""ParaRNN (Danieli et al. 2025) as a recommender: GRUs or LSTMs whose recurrence is diagonal."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from recsys.batch import Batch
from recsys.layers.block import PreNormBlock, Stack
from recsys.layers.diagonal_rnn import diagonal_gru, diagonal_lstm
from recsys.layers.dropout import Dropout
from recsys.layers.feedforward import FeedForward
from recsys.layers.item_encoder import ItemTable
from recsys.layers.mixer import State
from recsys.models.base import SequenceModel, check_sizes

MIXERS = {"gru": diagonal_gru, "lstm": diagonal_lstm}


class ParaRNNRec(SequenceModel):
    """Pre-norm blocks, each a diagonal nonlinear RNN and a feed-forward network; no positions."""

    paper = "Danieli et al., ParaRNN: Unlocking Parallel Training of Nonlinear RNNs for LLMs, 2025"
    good_at = "long histories and a small state, where a linear recurrence may remember too little"
    cost = "layers (4 state_dim + 2 hidden_dim) dim products; state 4 layers state_dim bytes"

    @dataclass(frozen=True)
    class Config:
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 2
        """Blocks."""
        cell: Literal["gru", "lstm"] = "gru"
        """Recurrent cell; an lstm has twice the state."""
        state_dim: int | None = None
        """Recurrent channels of a block; dim where not given."""
        max_len: int = 50
        """Longest history in training and evaluation, in items; a state forgets no event. Also the
        longest memory of a channel at first."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; dim where not given."""
        dropout: float = 0.2
        """Share of values dropped in item vectors and branches, in [0, 1)."""

        def __post_init__(self) -> None:
            check_sizes(self)

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        mixer = MIXERS[config.cell]
        state_dim = config.dim if config.state_dim is None else config.state_dim
        hidden_dim = config.dim if config.hidden_dim is None else config.hidden_dim
        self.items = ItemTable(num_items, config.dim)
        self.blocks = Stack(
            PreNormBlock(
                config.dim,
                mixer(config.dim, state_dim, longest=config.max_len),
                FeedForward(config.dim, hidden_dim, config.dropout),
                config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] a vector for each position, from the items up to and including it."""
        return self.norm(self.blocks(self.dropout(self.items(batch.items_BT))))

    def item_vectors(self) -> Tensor:
        """[V+1, D] the embedding table."""
        return self.items.weight

    def init_state(self, batch_size: int) -> State:
        """The state of each block: 4 num_layers state_dim bytes a history, twice that of an lstm,
        whatever its length."""
        return self.blocks.init_state(batch_size)

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(query [B, D] of the history with items_B int64 [B] behind it, the new state)."""
        x_BD, state = self.blocks.step(self.dropout(self.items(items_B)), state)
        return self.norm(x_BD), state


MODEL = ParaRNNRec
