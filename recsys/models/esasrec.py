"""eSASRec (Tikhonovich et al. 2025): SASRec's next-item training with LiGR blocks."""

from dataclasses import dataclass

from recsys.layers.attention import CausalSelfAttention
from recsys.layers.feedforward import SwiGLU
from recsys.layers.ligr import LiGRBlock
from recsys.layers.windowed import WindowedEncoder
from recsys.models.base import EncodedModel, ItemConfig, check_heads, check_sizes


class ESASRec(EncodedModel):
    """Causal attention and SwiGLU behind learned gates; the item table serves input and output.

    The paper trains it with a sampled softmax; which loss it meets is said by loss.name.
    """

    paper = "Tikhonovich et al., eSASRec: Enhancing Transformer-based Recommendations, RecSys 2025"
    good_at = "much data and deep stacks of blocks; the paper's loss is sampled_softmax"
    cost = "layers (18 dim^2 + 2 T dim) products; state max_len (16 + 8 layers dim) bytes"

    @dataclass(frozen=True)
    class Config(ItemConfig):
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
            check_sizes(self)
            check_heads(self.dim, self.num_heads)

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        hidden_dim = 4 * config.dim if config.hidden_dim is None else config.hidden_dim
        dim, heads, dropout = config.dim, config.num_heads, config.dropout
        blocks = (
            LiGRBlock(
                dim,
                CausalSelfAttention(dim, heads, dropout, config.max_len),
                SwiGLU(dim, hidden_dim, dropout),
                dropout,
            )
            for _ in range(config.num_layers)
        )
        self.encoder = WindowedEncoder(num_items, dim, config.max_len, dropout, blocks)


MODEL = ESASRec
