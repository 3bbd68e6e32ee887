"""minGRU and minLSTM (Feng et al. 2024) over item vectors."""

from dataclasses import dataclass
from typing import Literal

from recsys.errors import InputError
from recsys.layers.block import PreNormBlock
from recsys.layers.feedforward import FeedForward
from recsys.layers.mingru import MinGRU, MinimalRNN, MinLSTM
from recsys.layers.recurrent import RecurrentEncoder
from recsys.models.base import EncodedModel, ItemConfig, check_sizes

CELLS: dict[str, type[MinGRU] | type[MinLSTM]] = {"gru": MinGRU, "lstm": MinLSTM}


class MinGRURec(EncodedModel):
    """Gated linear recurrences whose gates see the event alone, in pre-norm blocks."""

    paper = "Feng et al., Were RNNs All We Needed?, 2024"
    good_at = "gated recurrence at the speed of a linear one; any length, cheap steps"
    cost = (
        "layers (3 expansion dim^2 + 2 dim hidden_dim) products; state 4 layers expansion dim bytes"
    )

    @dataclass(frozen=True)
    class Config(ItemConfig):
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 2
        """Recurrent blocks."""
        cell: Literal["gru", "lstm"] = "gru"
        """minGRU, one gate; or minLSTM, a forget and an input gate."""
        expansion: int = 2
        """Width of a layer's state, in multiples of dim."""
        max_len: int = 200
        """Longest history in items in training; a state forgets none."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; 4 dim where not given."""
        dropout: float = 0.2
        """Share of values dropped in embeddings and branches, in [0, 1)."""

        def __post_init__(self) -> None:
            check_sizes(self)
            if self.cell not in CELLS:
                raise InputError(f"model.cell must be one of gru, lstm, got {self.cell!r}")

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        hidden_dim = 4 * config.dim if config.hidden_dim is None else config.hidden_dim
        cell = CELLS[config.cell]
        blocks = (
            PreNormBlock(
                config.dim,
                MinimalRNN(config.dim, cell(config.dim, config.expansion * config.dim)),
                FeedForward(config.dim, hidden_dim, config.dropout),
                config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.encoder = RecurrentEncoder(num_items, config.dim, config.dropout, blocks)


MODEL = MinGRURec
