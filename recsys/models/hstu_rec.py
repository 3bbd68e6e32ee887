"""HSTU (Zhai et al. 2024) as a recommender of the next item."""

from dataclasses import dataclass

from recsys.layers.hstu import HSTUBlock
from recsys.layers.windowed import WindowedEncoder
from recsys.models.base import EncodedModel, ItemConfig, check_heads, check_sizes


class HSTURec(EncodedModel):
    """Stacked HSTU units over items with learned positions; the item table serves both ends.

    Time is that between events of the history, of a log with timestamps. The paper's own code also
    shows a query the time of the item that it asks for: a service does not know it, nor does this.
    """

    paper = "Zhai et al., Actions Speak Louder than Words, ICML 2024"
    good_at = "dense logs, with timestamps where there are; long histories and many layers"
    cost = "layers (5 dim^2 + 2 T dim) products; state max_len (16 + layers (8 dim + 8)) bytes"

    @dataclass(frozen=True)
    class Config(ItemConfig):
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
            check_sizes(self)
            check_heads(self.dim, self.num_heads)

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        dim, max_len, dropout = config.dim, config.max_len, config.dropout
        blocks = (
            HSTUBlock(dim, config.num_heads, dropout, max_len) for _ in range(config.num_layers)
        )
        self.encoder = WindowedEncoder(num_items, dim, max_len, dropout, blocks)


MODEL = HSTURec
