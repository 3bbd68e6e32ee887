"""Residual blocks: a mixer over time and a network at each position."""

from torch import Tensor, nn

from recsys.layers.dropout import Dropout


class PreNormBlock(nn.Module):
    """x + mixer(norm(x)), then x + feedforward(norm(x)), each branch under dropout."""

    def __init__(self, dim: int, mixer: nn.Module, feedforward: nn.Module, dropout: float):
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.feedforward_norm = nn.LayerNorm(dim)
        self.feedforward = feedforward
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = x_BTD + self.dropout(self.mixer(self.mixer_norm(x_BTD)))
        return x_BTD + self.dropout(self.feedforward(self.feedforward_norm(x_BTD)))
