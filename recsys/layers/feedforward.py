"""Position-wise networks."""

import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.dropout import Dropout


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between them, applied at each position."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.ReLU(inplace=True),
            Dropout(dropout),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.net(x_BTD)


class GELUFeedForward(nn.Module):
    """Two linear maps with a GELU between them (Hendrycks & Gimpel 2016), as in BERT."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.net(x_BTD)


class SwiGLU(nn.Module):
    """(SiLU(x W) * x V) W2 without biases: FFN_SwiGLU of Shazeer, GLU Variants (2020), eq. 6."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.project_in = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.dropout = Dropout(dropout)
        self.project_out = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        gate, value = self.project_in(x_BTD).chunk(2, dim=-1)
        return self.project_out(self.dropout(F.silu(gate) * value))
