"""Splits: which part of each history trains, and which positions are targets.

Nothing is copied: a split is made of positions in the flat item array of a SequenceDataset.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError


@dataclass(frozen=True)
class SplitConfig:
    """How histories are cut into train, valid and test."""

    kind: Literal["leave_one_out", "global_time", "sessions"] = "leave_one_out"
    """leave_one_out: a user's last item is the test target, the one before it the valid target.
    global_time: everything from one moment on is the test window, a window before it is valid.
    sessions: whole sequences are test, those of a given test set or else the last to begin; the
    last ones before them are valid."""
    target: Literal["auto", "last", "first", "successive"] = "auto"
    """Which of a user's interactions in the window, or of a session's behind its first, are
    targets; auto is successive (every one) for sessions, else last."""
    valid_share: float = 0.1
    """The share of all interactions in the valid window, or of training sessions that are valid, in
    (0, 1)."""
    test_share: float = 0.1
    """The share of all interactions in the test window, or of sessions that are test where no test
    set was given, in (0, 1)."""
    seen: Literal["auto", "mask", "keep"] = "auto"
    """mask takes items of the history out of the ranking, keep ranks them too; auto is keep for
    sessions, which return to items, else mask."""

    def settled(self) -> "SplitConfig":
        """The same split with every auto replaced by what it stands for here."""
        natural: Literal["successive", "last"] = "successive" if self.kind == "sessions" else "last"
        target = natural if self.target == "auto" else self.target
        return replace(self, target=target, seen=self.seen_items)

    @property
    def seen_items(self) -> Literal["mask", "keep"]:
        """What becomes of items of the history in a ranking."""
        if self.seen == "auto":
            return "keep" if self.kind == "sessions" else "mask"
        return self.seen

    def __post_init__(self) -> None:
        if not (
            self.valid_share > 0 and self.test_share > 0 and self.valid_share + self.test_share < 1
        ):
            raise InputError(
                "split.valid_share and split.test_share must be above 0 and add up to less than 1,"
                f" got {self.valid_share} and {self.test_share}"
            )
        if self.kind == "leave_one_out" and self.target not in ("auto", "last"):
            raise InputError(
                f"split.target={self.target} needs split.kind=global_time or sessions;"
                " leave_one_out has one target"
            )


@dataclass(frozen=True)
class Histories:
    """Training histories: items[start:end] of each user that has any."""

    user: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Queries:
    """Questions with a known answer: items[start:end] is the history, items[end] the target."""

    user: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Split:
    """The four parts of a data set and the facts that belong beside every number taken on them."""

    train: Histories
    refit: Histories
    """Train and valid together: what a final model may learn from before the test."""
    valid: Queries
    test: Queries
    info: dict
    """For metrics.json: kind, target, users that were too short or new, boundaries."""


def split(dataset: SequenceDataset, config: SplitConfig) -> Split:
    """Cut every history. Raises InputError where no user is left to evaluate."""
    config = config.settled()
    if dataset.test_users and config.kind != "sessions":
        raise InputError(
            f"{dataset.name} has a test set of its own ({dataset.test_users} sequences), which"
            f" split.kind={config.kind} would not keep apart; use split.kind=sessions"
        )
    if config.kind == "leave_one_out":
        parts = _leave_one_out(dataset)
    else:
        cut = _global_time if config.kind == "global_time" else _sessions
        parts = cut(dataset, config)
    for name, queries in (("valid", parts.valid), ("test", parts.test)):
        if len(queries) == 0:
            raise InputError(
                f"{dataset.name}: no user is left for {name} under {config.kind}"
                f" ({len(dataset)} users, {len(dataset.items)} interactions); leave_one_out needs"
                " users with at least 3 interactions, global_time users with some before the window"
                " and in it, sessions at least one with 2 items in each part"
            )
    if not (parts.train.end - parts.train.start >= 2).any():
        raise InputError(
            f"{dataset.name}: no training history has two items, there is nothing to learn from"
            f" ({len(dataset)} users, {len(dataset.items)} interactions)"
        )
    return parts


def _leave_one_out(dataset: SequenceDataset) -> Split:
    start, end = dataset.offsets[:-1], dataset.offsets[1:]
    user = np.arange(len(start))
    long = end - start >= 3
    held_out = np.where(long, 2, 0)
    queries = [
        Queries(user[long], start[long], end[long] - back) for back in (2, 1)
    ]  # valid, then test
    return Split(
        train=_non_empty(user, start, end - held_out),
        refit=_non_empty(user, start, end - held_out // 2),
        valid=queries[0],
        test=queries[1],
        info={
            "kind": "leave_one_out",
            "target": "last",
            "users_train_only": int((~long).sum()),
        },
    )


def _global_time(dataset: SequenceDataset, config: SplitConfig) -> Split:
    times = dataset.timestamps
    if times is None:
        raise InputError(
            f"{dataset.name} has no times, split.kind=global_time needs them; use leave_one_out"
        )
    quantiles = [1 - config.valid_share - config.test_share, 1 - config.test_share]
    valid_from, test_from = (int(t) for t in np.quantile(times, quantiles, method="higher"))
    start, end = dataset.offsets[:-1], dataset.offsets[1:]
    user = np.arange(len(start))
    before_valid = start + _count_before(times, dataset.offsets, valid_from)
    before_test = start + _count_before(times, dataset.offsets, test_from)
    valid, valid_new = _window(user, start, before_valid, before_test, config.target)
    test, test_new = _window(user, start, before_test, end, config.target)
    return Split(
        train=_non_empty(user, start, before_valid),
        refit=_non_empty(user, start, before_test),
        valid=valid,
        test=test,
        info={
            "kind": "global_time",
            "target": config.target,
            "valid_from": valid_from,
            "test_from": test_from,
            "users_train_only": int((before_valid == end).sum()),
            "valid_targets_without_history": valid_new,
            "test_targets_without_history": test_new,
        },
    )


def _sessions(dataset: SequenceDataset, config: SplitConfig) -> Split:
    """Whole sequences train or are asked about, in order of their first event (stable; file order
    without times)."""
    start, end = dataset.offsets[:-1], dataset.offsets[1:]
    order = np.flatnonzero(end > start)
    given = order >= len(start) - dataset.test_users
    test, order = order[given], order[~given]
    if dataset.timestamps is not None:
        order = order[np.argsort(dataset.timestamps[start[order]], kind="stable")]
    if not dataset.test_users:
        order, test = _last(order, config.test_share)
    train, valid = _last(order, config.valid_share)
    train, valid, refit, test = (np.sort(part) for part in (train, valid, order, test))
    queries = [
        _window(part, start[part], start[part] + 1, end[part], config.target)[0]
        for part in (valid, test)
    ]
    return Split(
        train=Histories(train, start[train], end[train]),
        refit=Histories(refit, start[refit], end[refit]),
        valid=queries[0],
        test=queries[1],
        info={
            "kind": "sessions",
            "target": config.target,
            "test_given": dataset.test_users > 0,
            "train_sessions": len(train),
            "valid_sessions": len(valid),
            "test_sessions": len(test),
        },
    )


def _last(order: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(all but the last `share`, the last `share`: at least one where there are two)."""
    count = min(max(round(share * len(order)), 1), len(order) - 1)
    return order[: len(order) - count], order[len(order) - count :]


def _count_before(times: np.ndarray, offsets: np.ndarray, moment: int) -> np.ndarray:
    """[U] how many of each user's interactions lie before `moment`."""
    total = np.concatenate([[0], np.cumsum(times < moment)])
    return total[offsets[1:]] - total[offsets[:-1]]


def _window(
    user: np.ndarray, start: np.ndarray, low: np.ndarray, high: np.ndarray, target: str
) -> tuple[Queries, int]:
    """Targets among positions low..high-1 of each user; those that have no history are counted."""
    if target == "successive":
        counts = high - low
        user, start = np.repeat(user, counts), np.repeat(start, counts)
        first = np.repeat(low - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        end = first + np.arange(counts.sum())
    else:
        some = high > low
        user, start = user[some], start[some]
        end = high[some] - 1 if target == "last" else low[some]
    known = end > start
    return Queries(user[known], start[known], end[known]), int((~known).sum())


def _non_empty(user: np.ndarray, start: np.ndarray, end: np.ndarray) -> Histories:
    some = end > start
    return Histories(user[some], start[some], end[some])
