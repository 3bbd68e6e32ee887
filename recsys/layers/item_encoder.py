"""Items as vectors."""

from torch import Tensor, nn

from recsys.batch import PAD


class ItemTable(nn.Embedding):
    """A learned vector for each item 1..V; `weight` [V+1, D] holds padding in row 0.

    Small vectors: the softmax starts near uniform and the first steps are not wasted on taking back
    random preferences. What a model reads of a history is scaled up by sqrt(dim).
    """

    def __init__(self, num_items: int, dim: int):
        super().__init__(num_items + 1, dim, padding_idx=PAD)
        nn.init.normal_(self.weight, std=dim**-0.5 * 0.1)
        nn.init.zeros_(self.weight[PAD])

    def forward(self, items: Tensor) -> Tensor:
        """int64 [...] -> [..., D], sqrt(D) times the items' vectors."""
        return super().forward(items) * self.embedding_dim**0.5
