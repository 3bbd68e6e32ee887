"""Why an item is recommended, by occlusion: the event without which its score falls most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.errors import InputError
from recsys.models.base import SequenceModel
from recsys.retrieval.histories import batch_of, encoded, times_of_known
from recsys.retrieval.snapshot import Snapshot

EVENTS = 50
"""Events of a history that are tried, the latest of those that the model sees."""
ROUNDING = 1e-6
"""A score that falls by no more than this share of itself may not have fallen at all."""


@dataclass(frozen=True)
class Reason:
    """The event of a history that speaks most for an item."""

    item: Any
    """Raw id of the event's item."""
    title: str | None
    """Its title, None where the catalogue has none."""
    gain: float | None
    """How much the score falls without that event, above 0. None where it is the only known event
    and the model has no score without any."""


def reasons(
    now: Snapshot, history: Sequence[Any], items: Sequence[Any], times: Sequence[int] | None
) -> list[Reason | None]:
    """`Retriever.reasons` in one snapshot."""
    wanted, strange = encoded(now.vocab, "items", items, Sequence)
    if strange:
        raise InputError(f"items hold {strange[0]!r}, which is not in the catalogue")
    known, _ = encoded(now.vocab, "a history", history, Sequence)
    moments = None if times is None else times_of_known(now.vocab, [history], [times])
    if not wanted or not known:
        return [None] * len(wanted)
    if len(known) == 1 and isinstance(now.model, SequenceModel):
        # All that the query holds of this user comes from that event.
        return [_reason(now, known[0], None)] * len(wanted)
    return _causes(now, known, None if moments is None else moments[0], wanted)


def _causes(
    now: Snapshot, history: list[int], times: list[int] | None, items: list[int]
) -> list[Reason | None]:
    """A reason for each item from a history that has a score without any one of its events."""
    max_len = now.model.max_len
    # Without one of its last max_len events, the model sees the one before them.
    history = history[-max_len - 1 :]
    latest_first = range(len(history))[::-1][: min(max_len, EVENTS)]
    rows = _with_and_without(history, latest_first)
    moments = None if times is None else _with_and_without(times[-max_len - 1 :], latest_first)
    scores_BN = now.scores(batch_of(rows, moments, max_len), np.array(items)).astype(np.float64)
    fall_EN = scores_BN[0] - scores_BN[1:]
    event_N = fall_EN.argmax(axis=0)  # of equal ones the first, which is the latest event
    falls_N = fall_EN.max(axis=0) > ROUNDING * np.abs(scores_BN[0])
    return [
        _reason(now, history[latest_first[event]], float(fall_EN[event, place])) if falls else None
        for place, (event, falls) in enumerate(zip(event_N, falls_N, strict=True))
    ]


def _with_and_without(row: list[int], places: Sequence[int]) -> list[list[int]]:
    """A row whole, and then without each of some places."""
    return [row, *(row[:place] + row[place + 1 :] for place in places)]


def _reason(now: Snapshot, item: int, gain: float | None) -> Reason:
    return Reason(now.vocab.decode([item])[0], now.titles[item - 1], gain)
