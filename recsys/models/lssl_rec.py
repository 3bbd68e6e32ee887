"""Linear state-space layers (Gu et al. 2021; Smith et al. 2023) over item vectors."""

from dataclasses import dataclass
from typing import Literal

from recsys.errors import InputError
from recsys.layers.block import PreNormBlock
from recsys.layers.feedforward import FeedForward
from recsys.layers.lssl import EventSSM, GapSSM
from recsys.layers.recurrent import RecurrentEncoder
from recsys.models.base import EncodedModel, ItemConfig, check_sizes

LAYERS = {"events": EventSSM, "gaps": GapSSM}


class LSSLRec(EncodedModel):
    """Diagonal state spaces in pre-norm blocks, over events or over the true time between them.

    With model.time=gaps, histories without times are an InputError.
    """

    paper = (
        "Gu et al., Combining Recurrent, Convolutional, and Continuous-time Models with Linear"
        " State-Space Layers, NeurIPS 2021; Smith et al., Simplified State Space Layers for"
        " Sequence Modeling, ICLR 2023"
    )
    good_at = "long histories; with model.time=gaps, histories whose pauses mean something"
    cost = (
        "layers (2 dim hidden_dim + 4 dim state_dim) products; state 8 layers state_dim bytes,"
        " with gaps 8 layers more"
    )

    @dataclass(frozen=True)
    class Config(ItemConfig):
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 2
        """State-space blocks."""
        state_dim: int | None = None
        """Complex channels of a layer's state; dim where not given."""
        time: Literal["events", "gaps"] = "events"
        """What moves a state on: every event by one step, or the time since the event before."""
        min_dt: float = 0.01
        """Least time scale dt of a channel at first; an event leaves exp(-dt / 2) of a state."""
        max_dt: float = 1.0
        """Largest time scale of a channel at first."""
        max_len: int = 200
        """Longest history in items in training; a state forgets none."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; 4 dim where not given."""
        dropout: float = 0.2
        """Share of values dropped in embeddings and branches, in [0, 1)."""

        def __post_init__(self) -> None:
            check_sizes(self)
            if self.time not in LAYERS:
                raise InputError(f"model.time must be one of events, gaps, got {self.time!r}")
            if not 0 < self.min_dt <= self.max_dt:
                raise InputError(
                    "model.min_dt and model.max_dt must rise above 0, got"
                    f" {self.min_dt} and {self.max_dt}"
                )

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        state_dim = config.dim if config.state_dim is None else config.state_dim
        hidden_dim = 4 * config.dim if config.hidden_dim is None else config.hidden_dim
        layer = LAYERS[config.time]
        blocks = (
            PreNormBlock(
                config.dim,
                layer(config.dim, state_dim, config.min_dt, config.max_dt),
                FeedForward(config.dim, hidden_dim, config.dropout),
                config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.encoder = RecurrentEncoder(num_items, config.dim, config.dropout, blocks)


MODEL = LSSLRec
