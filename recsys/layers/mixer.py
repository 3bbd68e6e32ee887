"""What mixes over time, as a whole history at once or event by event."""

from typing import Any, TypeAlias

from torch import Tensor, nn

State: TypeAlias = tuple[Any, ...]
"""What is remembered of the events so far: tensors whose first place is B, or further such tuples.
A step gives a new one and leaves the old as it was."""


class Mixer(nn.Module):
    """A causal module over time. A position sees itself and what came before it.

    `times` are those of the events, int64 in the unit of the data set, or None where a log has
    none; a mixer that has no use for them takes no notice. Padding, at the end, is never seen.
    """

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def init_state(self, batch_size: int) -> State:
        """The state of `batch_size` histories before their first event."""
        raise NotImplementedError(f"{type(self).__name__} does not define init_state")

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(what `forward` gives for this event [B, D], the state behind it)."""
        raise NotImplementedError(f"{type(self).__name__} does not define step")
