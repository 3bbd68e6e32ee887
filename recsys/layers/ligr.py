"""The residual block of LiGR: branches behind gates that read what they add to."""

import torch
from torch import Tensor, nn

from recsys.layers.dropout import Dropout
from recsys.layers.mixer import Mixer, State


class LiGRBlock(Mixer):
    """x + sigmoid(x G + g) * branch(norm(x)) for a mixer over time, then for a feed-forward.

    Each branch is under dropout; the gate reads x as it is, not its norm. From Borisyuk et al.,
    From Features to Transformers (2025), their learned normalization, in the form in which
    Tikhonovich et al. (2025) use it in eSASRec.
    """

    def __init__(self, dim: int, mixer: Mixer, feedforward: nn.Module, dropout: float):
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.mixer_gate = nn.Linear(dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.feedforward = feedforward
        self.feedforward_gate = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self._add_branches(x_BTD, self.mixer(self.mixer_norm(x_BTD), times_BT))

    def init_state(self, batch_size: int) -> State:
        """The mixer's."""
        return self.mixer.init_state(batch_size)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        mixed_BD, state = self.mixer.step(self.mixer_norm(x_BD), state, times_B)
        return self._add_branches(x_BD, mixed_BD), state

    def _add_branches(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + torch.sigmoid(self.mixer_gate(x)) * self.dropout(mixed)
        fed = self.feedforward(self.feedforward_norm(x))
        return x + torch.sigmoid(self.feedforward_gate(x)) * self.dropout(fed)
