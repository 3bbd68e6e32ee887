"""The residual block of an encoder that sees a whole history at once."""

from torch import Tensor, nn

from recsys.layers.attention import SelfAttention
from recsys.layers.dropout import Dropout


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)), each branch under dropout.

    It can answer for a few places alone: what nobody asks for is then not computed.
    """

    def __init__(self, dim: int, attention: SelfAttention, feedforward: nn.Module, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.feedforward_norm = nn.LayerNorm(dim)
        self.feedforward = feedforward
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, real_BT: Tensor, places_BM: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, M, D] at the places [B, M] int64, at all T where none are given.

        real_BT is True where x is not padding.
        """
        normed_BTD = self.attention_norm(x_BTD)
        x_BMD, normed_BMD = x_BTD, normed_BTD
        if places_BM is not None:
            index_BMD = places_BM[:, :, None].expand(-1, -1, x_BTD.shape[2])
            x_BMD, normed_BMD = x_BTD.gather(1, index_BMD), normed_BTD.gather(1, index_BMD)
        x_BMD = x_BMD + self.dropout(self.attention(normed_BMD, normed_BTD, real_BT))
        return x_BMD + self.dropout(self.feedforward(self.feedforward_norm(x_BMD)))
