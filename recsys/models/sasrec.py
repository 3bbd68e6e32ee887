"""SASRec (Kang & McAuley 2018): causal self-attention over item vectors."""

from dataclasses import dataclass

from recsys.layers.attention import CausalSelfAttention
from recsys.layers.block import PreNormBlock
from recsys.layers.feedforward import FeedForward
from recsys.layers.windowed import WindowedEncoder
from recsys.models.base import EncodedModel, ItemConfig, check_heads, check_sizes


class SASRec(EncodedModel):
    """Pre-norm transformer with learned positions; the item table serves input and output."""

    paper = "Kang & McAuley, Self-Attentive Sequential Recommendation, ICDM 2018"
    good_at = "the strong default: sparse purchases and short to medium histories"
    cost = "layers (6 dim^2 + 2 T dim) products; state max_len (16 + 8 layers dim) bytes"

    @dataclass(frozen=True)
    class Config(ItemConfig):
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 2
        """Attention blocks."""
        num_heads: int = 2
        """Attention heads a block; must divide dim."""
        max_len: int = 50
        """Longest history in items; older items are not seen."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; the paper's, dim, where not given."""
        dropout: float = 0.2
        """Share of values dropped in embeddings, attention and branches, in [0, 1)."""

        def __post_init__(self) -> None:
            check_sizes(self)
            check_heads(self.dim, self.num_heads)

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        hidden_dim = config.dim if config.hidden_dim is None else config.hidden_dim
        dim, heads, dropout = config.dim, config.num_heads, config.dropout
        blocks = (
            PreNormBlock(
                dim,
                CausalSelfAttention(dim, heads, dropout, config.max_len),
                FeedForward(dim, hidden_dim, dropout),
                dropout,
            )
            for _ in range(config.num_layers)
        )
        self.encoder = WindowedEncoder(num_items, dim, config.max_len, dropout, blocks)


MODEL = SASRec
