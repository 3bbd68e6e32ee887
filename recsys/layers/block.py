"""Residual blocks: a mixer over time and a network at each position. And stacks of them."""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from recsys.layers.dropout import Dropout
from recsys.layers.mixer import Mixer, State


class PreNormBlock(Mixer):
    """x + mixer(norm(x)), then x + feedforward(norm(x)), each branch under dropout."""

    def __init__(self, dim: int, mixer: Mixer, feedforward: nn.Module, dropout: float):
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.feedforward_norm = nn.LayerNorm(dim)
        self.feedforward = feedforward
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = x_BTD + self.dropout(self.mixer(self.mixer_norm(x_BTD), times_BT))
        return x_BTD + self.dropout(self.feedforward(self.feedforward_norm(x_BTD)))

    def init_state(self, batch_size: int) -> State:
        """The mixer's."""
        return self.mixer.init_state(batch_size)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        mixed_BD, state = self.mixer.step(self.mixer_norm(x_BD), state, times_B)
        x_BD = x_BD + self.dropout(mixed_BD)
        return x_BD + self.dropout(self.feedforward(self.feedforward_norm(x_BD))), state


class PostNormBlock(Mixer):
    """norm(x + mixer(x)), then norm(x + feedforward(x)), each branch under dropout."""

    def __init__(self, dim: int, mixer: Mixer, feedforward: nn.Module, dropout: float):
        super().__init__()
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(dim)
        self.feedforward = feedforward
        self.feedforward_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = self.mixer_norm(x_BTD + self.dropout(self.mixer(x_BTD, times_BT)))
        return self.feedforward_norm(x_BTD + self.dropout(self.feedforward(x_BTD)))

    def init_state(self, batch_size: int) -> State:
        """The mixer's."""
        return self.mixer.init_state(batch_size)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        mixed_BD, state = self.mixer.step(x_BD, state, times_B)
        x_BD = self.mixer_norm(x_BD + self.dropout(mixed_BD))
        return self.feedforward_norm(x_BD + self.dropout(self.feedforward(x_BD))), state


class Stack(nn.ModuleList):
    """Blocks (or mixers) one after the other; its state is a tuple of theirs."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        for block in self._blocks():
            x_BTD = block(x_BTD, times_BT)
        return x_BTD

    def init_state(self, batch_size: int) -> State:
        """Before the first event."""
        return tuple(block.init_state(batch_size) for block in self._blocks())

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        after = []
        for block, before in zip(self._blocks(), state, strict=True):
            x_BD, new = block.step(x_BD, before, times_B)
            after.append(new)
        return x_BD, tuple(after)

    def _blocks(self) -> Iterator[Mixer]:
        return cast(Iterator[Mixer], iter(self))
