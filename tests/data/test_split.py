"""Splits against positions worked out by hand, and what no split may do."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from worlds import world

from recsys.data.loader import flat_positions
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Histories, Queries, Split, SplitConfig, split
from recsys.errors import InputError


def timed(histories: list[list[int]]) -> SequenceDataset:
    """Histories of times; items are numbered in order of the list."""
    times = np.concatenate([np.asarray(history) for history in histories])
    offsets = np.cumsum([0, *map(len, histories)])
    return SequenceDataset.from_arrays(np.arange(1, len(times) + 1), offsets, times)


def cut(dataset: SequenceDataset, queries: Queries) -> list[tuple[int, list[int], int]]:
    """(user, history, target) of each query."""
    return [
        (int(u), dataset.items[s:e].tolist(), int(dataset.items[e]))
        for u, s, e in zip(queries.user, queries.start, queries.end, strict=True)
    ]


def trained(dataset: SequenceDataset, histories: Histories) -> list[list[int]]:
    return [
        dataset.items[s:e].tolist() for s, e in zip(histories.start, histories.end, strict=True)
    ]


def test_leave_one_out_asks_for_the_last_item_and_the_one_before_it():
    dataset = world([[1, 2, 3, 4], [5, 6, 7]])
    parts = split(dataset, SplitConfig())
    assert cut(dataset, parts.test) == [(0, [1, 2, 3], 4), (1, [5, 6], 7)]
    assert cut(dataset, parts.valid) == [(0, [1, 2], 3), (1, [5], 6)]
    assert trained(dataset, parts.train) == [[1, 2], [5]]
    assert trained(dataset, parts.refit) == [[1, 2, 3], [5, 6]]


def test_users_too_short_to_leave_two_out_only_train_and_are_counted():
    dataset = world([[1], [2, 3], [4, 5, 6, 7]])
    parts = split(dataset, SplitConfig())
    assert trained(dataset, parts.train) == [[1], [2, 3], [4, 5]]
    assert cut(dataset, parts.test) == [(2, [4, 5, 6], 7)]
    assert parts.info["users_train_only"] == 2


# Twenty interactions at times 0..19: valid from 16, test from 18.
HISTORIES = [[0, 1, 2, 16, 17, 18, 19], list(range(3, 15)), [15]]


@pytest.mark.parametrize(
    ("target", "valid", "test"),
    [
        ("last", [(0, 4)], [(0, 6)]),
        ("first", [(0, 3)], [(0, 5)]),
        ("successive", [(0, 3), (0, 4)], [(0, 5), (0, 6)]),
    ],
)
def test_global_time_picks_targets_in_the_windows(target, valid, test):
    dataset = timed(HISTORIES)
    parts = split(dataset, SplitConfig(kind="global_time", target=target))
    assert (parts.info["valid_from"], parts.info["test_from"]) == (16, 18)
    assert list(zip(parts.valid.user, parts.valid.end, strict=True)) == valid
    assert list(zip(parts.test.user, parts.test.end, strict=True)) == test
    assert trained(dataset, parts.train)[0] == [1, 2, 3]
    assert trained(dataset, parts.refit)[0] == [1, 2, 3, 4, 5]


def test_global_time_counts_targets_of_users_without_a_history():
    # Times 0..19 and windows of a fifth: valid from 12, test from 16.
    dataset = timed([list(range(12)), [12, 13], [14, 16], [15, 17], [18, 19]])
    windows = {"valid_share": 0.2, "test_share": 0.2}
    parts = split(dataset, SplitConfig(kind="global_time", target="successive", **windows))
    assert (parts.info["valid_from"], parts.info["test_from"]) == (12, 16)
    assert cut(dataset, parts.valid) == [(1, [13], 14)]
    assert cut(dataset, parts.test) == [(2, [15], 16), (3, [17], 18), (4, [19], 20)]
    assert parts.info["valid_targets_without_history"] == 3
    assert parts.info["test_targets_without_history"] == 1
    assert parts.info["users_train_only"] == 1


def test_equal_times_keep_their_order_and_fall_on_one_side():
    # The valid window begins at the second of the four interactions of time 5: it takes them all.
    dataset = timed([[1, 1, 2, 2, 3], [1, 5, 5, 5], [3, 5, 7]])
    windows = {"valid_share": 0.25, "test_share": 0.05}
    parts = split(dataset, SplitConfig(kind="global_time", target="successive", **windows))
    assert trained(dataset, parts.train) == [[1, 2, 3, 4, 5], [6], [10]]
    assert cut(dataset, parts.valid) == [
        (1, [6], 7),
        (1, [6, 7], 8),
        (1, [6, 7, 8], 9),
        (2, [10], 11),
    ]
    assert cut(dataset, parts.test) == [(2, [10, 11], 12)]


WORLDS = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=4, max_size=12)


def timed_and_cut(histories: list[list[int]], target: str) -> tuple[SequenceDataset, Split]:
    dataset = timed([sorted(history) for history in histories])
    try:
        return dataset, split(dataset, SplitConfig(kind="global_time", target=target))
    except InputError:
        reject()  # too small a world to be cut


@settings(max_examples=40, deadline=None)
@given(WORLDS, st.sampled_from(["last", "first", "successive"]))
def test_global_time_never_trains_on_anything_from_a_target_window(histories, target):
    dataset, parts = timed_and_cut(histories, target)
    edges = (parts.info["valid_from"], parts.info["test_from"])
    for window, learned, queries in zip(
        edges, (parts.train, parts.refit), (parts.valid, parts.test), strict=True
    ):
        _, position = flat_positions(learned.start, learned.end)
        assert (dataset.timestamps[position] < window).all()
        assert (dataset.timestamps[queries.end] >= window).all()
    assert (dataset.timestamps[parts.valid.end] < edges[1]).all()


@settings(max_examples=40, deadline=None)
@given(WORLDS, st.sampled_from(["last", "first", "successive"]))
def test_global_time_puts_the_whole_history_directly_before_its_target(histories, target):
    dataset, parts = timed_and_cut(histories, target)
    for queries in (parts.valid, parts.test):
        assert (queries.start == dataset.offsets[queries.user]).all()
        assert (queries.start < queries.end).all()
        assert (queries.end < dataset.offsets[queries.user + 1]).all()


@settings(max_examples=40, deadline=None)
@given(WORLDS)
def test_successive_asks_for_every_interaction_of_a_window_once(histories):
    dataset, parts = timed_and_cut(histories, "successive")
    times, first = dataset.timestamps, set(dataset.offsets[:-1].tolist())
    valid_from, test_from = parts.info["valid_from"], parts.info["test_from"]
    for queries, low, high, part in (
        (parts.valid, valid_from, test_from, "valid"),
        (parts.test, test_from, 41, "test"),
    ):
        window = set(np.flatnonzero((times >= low) & (times < high)).tolist())
        assert sorted(queries.end.tolist()) == sorted(window - first)
        assert parts.info[f"{part}_targets_without_history"] == len(window & first)


def with_test(dataset: SequenceDataset, test_users: int) -> SequenceDataset:
    """The same data with its last sequences as a test set of its own."""
    return replace(dataset, info={**dataset.info, "test_users": test_users})


def sessions(**settings) -> SplitConfig:
    return SplitConfig(kind="sessions", **settings)


# In order of their first event: c, a, e, b, d; items are 1 to 11 in file order.
STARTS = [[20, 21], [40, 41, 43], [10, 90], [50, 51], [30, 31]]


def test_sessions_that_begin_last_are_test_and_those_before_them_valid():
    dataset = timed(STARTS)
    parts = split(dataset, sessions(test_share=0.4, valid_share=0.3))
    assert trained(dataset, parts.train) == [[1, 2], [6, 7]]
    assert trained(dataset, parts.refit) == [[1, 2], [6, 7], [10, 11]]
    assert cut(dataset, parts.valid) == [(4, [10], 11)]
    assert cut(dataset, parts.test) == [(1, [3], 4), (1, [3, 4], 5), (3, [8], 9)]
    assert parts.info == {
        "kind": "sessions",
        "target": "successive",
        "test_given": False,
        "train_sessions": 2,
        "valid_sessions": 1,
        "test_sessions": 2,
    }


def test_sessions_without_times_or_with_equal_ones_keep_their_order():
    histories = [[1, 2], [3, 4], [5, 6], [7, 8]]
    for dataset in (world(histories), timed([[7, 8]] * 4)):
        parts = split(dataset, sessions(test_share=0.25, valid_share=0.3))
        assert trained(dataset, parts.train) == histories[:2]
        assert cut(dataset, parts.valid) == [(2, [5], 6)]
        assert cut(dataset, parts.test) == [(3, [7], 8)]


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("auto", [(2, [5], 6), (2, [5, 6], 7), (3, [8], 9)]),
        ("last", [(2, [5, 6], 7), (3, [8], 9)]),
        ("first", [(2, [5], 6), (3, [8], 9)]),
    ],
)
def test_a_given_test_set_is_the_test_whenever_it_happened(target, wanted):
    # The test sessions begin first; with shares by time they would train.
    dataset = with_test(timed([[50, 51], [60, 61], [1, 2, 3], [4, 5], [2]]), 3)
    parts = split(dataset, sessions(target=target))
    assert trained(dataset, parts.train) == [[1, 2]]
    assert trained(dataset, parts.refit) == [[1, 2], [3, 4]]
    assert cut(dataset, parts.valid) == [(1, [3], 4)]
    assert cut(dataset, parts.test) == wanted
    assert (parts.info["test_given"], parts.info["test_sessions"]) == (True, 3)


@settings(max_examples=40, deadline=None)
@given(WORLDS, st.integers(0, 2))
def test_sessions_are_parted_whole_and_every_item_behind_a_first_is_asked_once(histories, last):
    dataset = timed([sorted(history) for history in histories])
    dataset = with_test(dataset, last)
    try:
        parts = split(dataset, sessions(valid_share=0.3, test_share=0.3))
    except InputError:
        reject()  # no part of it asks for anything
    _, learned = flat_positions(parts.train.start, parts.train.end)
    _, refit = flat_positions(parts.refit.start, parts.refit.end)
    first = set(dataset.offsets[:-1].tolist())
    asked = {"valid": set(refit.tolist()) - set(learned.tolist())}
    asked["test"] = set(range(len(dataset.items))) - set(refit.tolist())
    for part, queries in (("valid", parts.valid), ("test", parts.test)):
        assert sorted(queries.end.tolist()) == sorted(asked[part] - first)
        assert (queries.start == dataset.offsets[queries.user]).all()
    if last:
        assert min(asked["test"]) == dataset.offsets[-1 - last]


def test_data_with_a_test_set_is_not_cut_in_another_way():
    dataset = with_test(timed([[1, 2, 3, 4], [5, 6, 7]]), 1)
    for kind in ("leave_one_out", "global_time"):
        with pytest.raises(InputError, match=r"would not keep apart; use split\.kind=sessions"):
            split(dataset, SplitConfig(kind=kind))


@pytest.mark.parametrize(
    ("kind", "target", "seen"),
    [
        ("leave_one_out", "last", "mask"),
        ("global_time", "last", "mask"),
        ("sessions", "successive", "keep"),
    ],
)
def test_auto_stands_for_what_is_natural_for_a_kind(kind, target, seen):
    found = SplitConfig(kind=kind).settled()
    assert (found.target, found.seen, found.seen_items) == (target, seen, seen)
    other = SplitConfig(kind=kind, target="last", seen="mask" if seen == "keep" else "keep")
    assert other.settled() == other


def test_a_split_that_leaves_nothing_to_do_says_so():
    with pytest.raises(InputError, match="at least 3 interactions"):
        split(world([[1, 2], [1]]), SplitConfig())
    with pytest.raises(InputError, match="nothing to learn"):
        split(world([[1, 2, 3]]), SplitConfig())
    with pytest.raises(InputError, match="no user is left for test under global_time"):
        split(timed([[0, 1, 2, 3], [4], [5]]), SplitConfig(kind="global_time", valid_share=0.3))
    with pytest.raises(InputError, match="has no times"):
        split(world([[1, 2, 3, 4]]), SplitConfig(kind="global_time"))
    with pytest.raises(InputError, match="no user is left for test under sessions"):
        split(world([[1, 2], [1, 2], [3]]), sessions())
    with pytest.raises(InputError, match="nothing to learn"):
        split(world([[1], [1, 2], [1, 2]]), sessions())


def test_split_settings_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match=r"needs split\.kind=global_time"):
        SplitConfig(target="first")
    with pytest.raises(InputError, match="add up to less than 1"):
        SplitConfig(kind="global_time", valid_share=0.6, test_share=0.5)
    with pytest.raises(InputError, match="must be above 0"):
        SplitConfig(kind="global_time", test_share=0.0)
    with pytest.raises(InputError, match="got nan"):
        SplitConfig(kind="global_time", valid_share=float("nan"))
