"""A live user: the state of a model behind the events so far, and what was seen. One small size."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.layers.mixer import State
from recsys.models.base import SequenceModel, Stepwise
from recsys.retrieval.histories import moment
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.state import state_to_bytes, tensors_from_bytes

SEEN = 500
"""Items that a state remembers as seen, the last ones; what was seen before may come back."""


class UnknownItems(InputError):
    """A state speaks of items that were added to another catalogue than the one that serves."""


@dataclass(frozen=True)
class UserState:
    """What a model knows of one user. An event makes a new one and leaves the old as it was."""

    layers: State
    """The model's own state, of one history."""
    query_BD: Tensor
    """float32 [1, D] the query behind the last known event."""
    seen_BN: Tensor
    """int32 [1, SEEN] the last distinct items, the latest at the end; zeros before the first."""
    counts_B2: Tensor
    """int64 [1, 2] events taken in, and events of unknown items, which change nothing else."""
    fingerprint: str
    """Of the weights that it belongs to."""

    @property
    def events(self) -> int:
        """Events taken in."""
        return int(self.counts_B2[0, 0])

    @property
    def unknown(self) -> int:
        """Events of items that the catalogue did not know."""
        return int(self.counts_B2[0, 1])

    @property
    def seen(self) -> list[int]:
        """Numbers of the items that must not come back, the latest last."""
        return self.seen_BN[0][self.seen_BN[0] > 0].tolist()

    def to_bytes(self) -> bytes:
        """Bytes that `Retriever.state_from_bytes` takes, of the same model alone."""
        tensors = (self.layers, self.query_BD, self.seen_BN, self.counts_B2)
        return state_to_bytes(tensors, self.fingerprint)


def stepwise(now: Snapshot) -> Any:
    """The model, which takes events one by one. InputError where it does not."""
    if not (isinstance(now.model, Stepwise) and isinstance(now.model, SequenceModel)):
        raise InputError(
            f"{type(now.model).__name__} does not take events one by one: give it whole histories"
        )
    return now.model


@torch.inference_mode()
def fresh(now: Snapshot) -> UserState:
    """The state before the first event."""
    layers = stepwise(now).init_state(1)
    dim = now.vectors_VD.shape[1]
    return UserState(
        layers,
        torch.zeros(1, dim, device=now.device),
        torch.zeros(1, SEEN, dtype=torch.int32),
        torch.zeros(1, 2, dtype=torch.int64),
        now.fingerprint,
    )


@torch.inference_mode()
def after(now: Snapshot, state: UserState, event: Any, time: int | None) -> UserState:
    """The state behind one more event, of a raw id."""
    model = stepwise(now)
    check_owner(now, state)
    known, _ = now.vocab.encode([event])
    if not known:
        return replace(state, counts_B2=state.counts_B2 + torch.tensor([[0, 1]]))
    item_B = torch.tensor(known, device=now.device)
    times_B = None if time is None else torch.tensor([moment(time)], device=now.device)
    query_BD, layers = model.step(item_B, state.layers, times_B)
    others = state.seen_BN[0][state.seen_BN[0] != known[0]][1 - SEEN :]
    seen_BN = torch.cat([others, torch.tensor(known, dtype=torch.int32)])[None]
    counts = state.counts_B2 + torch.tensor([[1, 0]])
    return UserState(layers, query_BD.float(), seen_BN, counts, state.fingerprint)


def from_bytes(now: Snapshot, data: bytes) -> UserState:
    """What `to_bytes` was called on.

    InputError where it is damaged or another model's, UnknownItems where it was made beside a
    catalogue of more items.
    """
    like = fresh(now)
    parts = (like.layers, like.query_BD, like.seen_BN, like.counts_B2)
    layers, query_BD, seen_BN, counts_B2 = tensors_from_bytes(data, parts, now.fingerprint)
    if (seen_BN < 0).any() or (seen_BN > len(now.vocab)).any():
        raise UnknownItems(
            f"the state has seen items that are not among the {len(now.vocab):,} of the catalogue:"
            " it was made beside one with more new items; start it anew from the history"
        )
    return UserState(layers, query_BD, seen_BN, counts_B2, now.fingerprint)


def check_owner(now: Snapshot, state: UserState) -> None:
    """InputError unless a state belongs to the weights that serve."""
    if state.fingerprint != now.fingerprint:
        raise InputError(
            f"the state belongs to another model (fingerprint {state.fingerprint[:12]}, this one"
            f" has {now.model_version}): start it anew from the history"
        )
