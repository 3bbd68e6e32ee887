"""Hybrids: blocks that mix over time in different ways, some recurrent, some attention."""

from collections.abc import Callable
from dataclasses import dataclass

from recsys.errors import InputError, nearest
from recsys.layers.aaren import Aaren
from recsys.layers.attention import CausalSelfAttention
from recsys.layers.block import PreNormBlock
from recsys.layers.diagonal_rnn import diagonal_gru
from recsys.layers.feedforward import FeedForward
from recsys.layers.lru import LRU
from recsys.layers.lssl import EventSSM
from recsys.layers.mingru import MinGRU, MinimalRNN
from recsys.layers.mixer import Mixer
from recsys.layers.ssm import Mamba, Mamba2
from recsys.layers.windowed import WindowedEncoder
from recsys.models.base import EncodedModel, ItemConfig, check_heads, check_sizes


class HybridRec(EncodedModel):
    """Pre-norm blocks, one for each name in model.mixers, over items at learned positions.

    A recurrent block carries what came before as a whole, an attention block looks single events
    up; language models of both (Griffin, Samba) need fewer layers of attention than without.
    """

    paper = (
        "De et al., Griffin: Mixing Gated Linear Recurrences with Local Attention, 2024;"
        " Ren et al., Samba, ICLR 2025"
    )
    good_at = "finding out which mix a log wants; each mixer here has a model of its own, too"
    cost = "that of its mixers; state that of its mixers and 16 max_len bytes"

    @dataclass(frozen=True)
    class Config(ItemConfig):
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        mixers: str = "lru,attention"
        """One name a block, from the first: attention, lru, mingru, gru (diagonal), lssl, mamba,
        mamba2, aaren."""
        num_heads: int = 2
        """Heads of attention, aaren and mamba2; must divide dim."""
        state_dim: int = 16
        """States of a channel in mamba and mamba2."""
        max_len: int = 50
        """Longest history in items; older items are not seen."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; 4 dim where not given."""
        dropout: float = 0.2
        """Share of values dropped in embeddings, attention and branches, in [0, 1)."""

        def __post_init__(self) -> None:
            check_sizes(self)
            check_heads(self.dim, self.num_heads)
            for name in mixer_names(self):
                if name not in MIXERS:
                    raise InputError(
                        f"model.mixers names {name!r}{nearest(name, MIXERS)} (mixers:"
                        f" {', '.join(MIXERS)})"
                    )

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        hidden_dim = 4 * config.dim if config.hidden_dim is None else config.hidden_dim
        dim, dropout = config.dim, config.dropout
        blocks = (
            PreNormBlock(dim, MIXERS[name](config), FeedForward(dim, hidden_dim, dropout), dropout)
            for name in mixer_names(config)
        )
        self.encoder = WindowedEncoder(num_items, dim, config.max_len, dropout, blocks)


def mixer_names(config: HybridRec.Config) -> list[str]:
    """The mixers of the blocks, from the first."""
    return [name.strip() for name in config.mixers.split(",")]


MIXERS: dict[str, Callable[[HybridRec.Config], Mixer]] = {
    "attention": lambda c: CausalSelfAttention(c.dim, c.num_heads, c.dropout, c.max_len),
    "lru": lambda c: LRU(c.dim, c.dim, 0.8, 0.99),
    "mingru": lambda c: MinimalRNN(c.dim, MinGRU(c.dim, c.dim)),
    "gru": lambda c: diagonal_gru(c.dim, c.dim, c.max_len),
    "lssl": lambda c: EventSSM(c.dim, c.dim, 0.01, 1.0),
    "mamba": lambda c: Mamba(c.dim, c.state_dim, expand=1, conv_width=4),
    "mamba2": lambda c: Mamba2(c.dim, c.state_dim, c.num_heads, expand=1, conv_width=4),
    "aaren": lambda c: Aaren(c.dim, c.num_heads),
}
"""What mixes over time, by its name in model.mixers."""

MODEL = HybridRec
