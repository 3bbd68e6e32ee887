"""Aaren (Feng et al. 2024) over item vectors: attention with a learned query, as an RNN."""

from dataclasses import dataclass

from recsys.layers.aaren import Aaren
from recsys.layers.block import PreNormBlock
from recsys.layers.feedforward import FeedForward
from recsys.layers.recurrent import RecurrentEncoder
from recsys.models.base import EncodedModel, ItemConfig, check_heads, check_sizes


class AarenRec(EncodedModel):
    """Pre-norm transformer whose attention is Aaren's; recency in place of positions."""

    paper = "Feng et al., Attention as an RNN, 2024; slopes of Press et al., ALiBi, ICLR 2022"
    good_at = "fast training, and services: a state of a few hundred bytes and cheap events"
    cost = (
        "layers (2 dim^2 + 2 dim hidden_dim) products; state 4 layers (dim + heads) bytes, however"
        " long the history"
    )

    @dataclass(frozen=True)
    class Config(ItemConfig):
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 2
        """Blocks."""
        num_heads: int = 4
        """Heads, each with a query and a recency slope of its own; must divide dim."""
        max_len: int = 50
        """Longest history in items that is encoded at once; step by step there is no limit."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; 4 dim where not given."""
        dropout: float = 0.2
        """Share of values dropped in embeddings and branches, in [0, 1)."""

        def __post_init__(self) -> None:
            check_sizes(self)
            check_heads(self.dim, self.num_heads)

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        hidden_dim = 4 * config.dim if config.hidden_dim is None else config.hidden_dim
        blocks = (
            PreNormBlock(
                config.dim,
                Aaren(config.dim, config.num_heads),
                FeedForward(config.dim, hidden_dim, config.dropout),
                config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.encoder = RecurrentEncoder(num_items, config.dim, config.dropout, blocks)


MODEL = AarenRec
