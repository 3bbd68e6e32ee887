"""Position-wise networks."""

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
