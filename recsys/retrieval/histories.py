"""What callers hand in, as item numbers and batches."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.data.vocab import Vocab
from recsys.errors import InputError


def encoded(
    vocab: Vocab, what: str, raw_ids: Collection[Any], kind: type
) -> tuple[list[int], list[Any]]:
    """(item numbers, unknown raw ids); a word is no list of ids, though it can be walked."""
    plain: Any = raw_ids.tolist() if isinstance(raw_ids, np.ndarray) else raw_ids
    if isinstance(plain, str | bytes) or not issubclass(type(plain), kind):
        raise InputError(f"{what} is a list of item ids, got {type(raw_ids).__name__} {raw_ids!r}")
    try:
        return vocab.encode(plain)
    except TypeError:  # a list or dictionary in the place of an id
        raise InputError(f"{what} holds what cannot be an item id: {raw_ids!r}") from None


def times_of_known(
    vocab: Vocab, histories: Sequence[Sequence[Any]], times: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The times of the known items, of the histories that have any."""
    if [len(row) for row in times] != [len(history) for history in histories]:
        raise InputError("times must name one time for each item of a history")
    rows = [
        [moment(time) for raw, time in zip(history, row, strict=True) if raw in vocab]
        for history, row in zip(histories, times, strict=True)
    ]
    return [row for row in rows if row]


def moment(time: Any) -> int:
    """A time as int64. InputError for what is none."""
    whole = isinstance(time, float | np.floating) and float(time).is_integer()
    if not (whole or (isinstance(time, int | np.integer) and not isinstance(time, bool))):
        raise InputError(f"a time is a whole number in the unit of the data set, got {time!r}")
    if not -(2**63) <= int(time) < 2**63:
        raise InputError(f"a time must fit into 64 bits, got {time!r}")
    return int(time)


def batch_of(histories: list[list[int]], times: list[list[int]] | None, max_len: int) -> Batch:
    """The last max_len items of each history."""
    lengths = [min(len(history), max_len) for history in histories]
    return Batch(
        _padded(histories, lengths),
        torch.tensor(lengths),
        None if times is None else _padded(times, lengths),
    )


def pairs(
    histories: Sequence[Sequence[int]], hidden: list[int], exclude_seen: bool
) -> tuple[Tensor, Tensor]:
    """(row, item) of all that must not come back."""
    masked = [[*history, *hidden] if exclude_seen else hidden for history in histories]
    rows = [row for row, items in enumerate(masked) for _ in items]
    return (
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor([item for items in masked for item in items], dtype=torch.int64),
    )


def _padded(rows: list[list[int]], lengths: list[int]) -> Tensor:
    """[B, T] int64: the last `lengths` numbers of each row, and zeros behind them."""
    longest = max(lengths)
    return torch.tensor(
        [row[-size:] + [0] * (longest - size) for row, size in zip(rows, lengths, strict=True)]
    )
