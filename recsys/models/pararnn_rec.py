"""ParaRNN (Danieli et al. 2025) as a recommender: GRUs or LSTMs whose recurrence is diagonal."""

from dataclasses import dataclass
from typing import Literal

from recsys.layers.block import PreNormBlock
from recsys.layers.diagonal_rnn import diagonal_gru, diagonal_lstm
from recsys.layers.feedforward import FeedForward
from recsys.layers.recurrent import RecurrentEncoder
from recsys.models.base import EncodedModel, ItemConfig, check_sizes

MIXERS = {"gru": diagonal_gru, "lstm": diagonal_lstm}


class ParaRNNRec(EncodedModel):
    """Pre-norm blocks, each a diagonal nonlinear RNN and a feed-forward network; no positions."""

    paper = "Danieli et al., ParaRNN: Unlocking Parallel Training of Nonlinear RNNs for LLMs, 2025"
    good_at = "long histories and a small state, where a linear recurrence may remember too little"
    cost = "layers (4 state_dim + 2 hidden_dim) dim products; state 4 layers state_dim bytes"

    @dataclass(frozen=True)
    class Config(ItemConfig):
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
        blocks = (
            PreNormBlock(
                config.dim,
                mixer(config.dim, state_dim, longest=config.max_len),
                FeedForward(config.dim, hidden_dim, config.dropout),
                config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.encoder = RecurrentEncoder(num_items, config.dim, config.dropout, blocks)


MODEL = ParaRNNRec
