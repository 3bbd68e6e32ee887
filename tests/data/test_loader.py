"""Batches: everything once, padded little, in an order that can be taken up again."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from worlds import world

from recsys.batch import PAD, Batch
from recsys.data.loader import TrainLoader, collate, flat_positions, query_batches, windows
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Histories, SplitConfig, split

RANDOM = np.random.default_rng(0)
HISTORIES = [(RANDOM.permutation(30)[:n] + 1).tolist() for n in RANDOM.integers(1, 25, 150)]
DATASET = world(HISTORIES)
PARTS = split(DATASET, SplitConfig())


def loader(seed: int = 3, rank: int = 0, world_size: int = 1) -> TrainLoader:
    return TrainLoader(DATASET, PARTS.train, 8, 10, seed, rank, world_size)


def rows(batches: Iterable[Batch]) -> list[list[int]]:
    return [
        batch.items_BT[row, : batch.lengths_B[row]].tolist()
        for batch in batches
        for row in range(len(batch.lengths_B))
    ]


def test_an_epoch_holds_each_usable_history_once_cut_from_the_left():
    wanted = [h[:-2] if len(h) >= 3 else h for h in HISTORIES]
    wanted = [h[-10:] for h in wanted if len(h) >= 2]
    assert sorted(rows(loader().epoch(0))) == sorted(wanted)


def test_batches_are_right_padded_and_trimmed_to_their_longest_history():
    for batch in loader().epoch(0):
        assert batch.items_BT.shape[1] == int(batch.lengths_B.max())
        assert batch.items_BT.dtype == torch.int64
        assert ((batch.items_BT != PAD) == batch.real_BT).all()


def test_the_order_depends_on_seed_and_epoch_alone():
    assert rows(loader().epoch(1)) == rows(loader().epoch(1))
    assert rows(loader().epoch(1)) != rows(loader().epoch(2))
    assert rows(loader().epoch(1)) != rows(loader(seed=4).epoch(1))


def test_an_epoch_can_go_on_at_any_batch():
    for own in (loader(), loader(rank=1, world_size=2)):
        whole = list(own.epoch(5))
        for first in (0, 4, len(own)):
            rest = list(own.epoch(5, first_batch=first))
            assert len(rest) == len(own) - first
            assert rows(rest) == rows(whole[first:])


@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_processes_share_an_epoch_and_do_the_same_number_of_batches(world_size):
    alone = rows(loader().epoch(0))
    parts = [loader(rank=rank, world_size=world_size) for rank in range(world_size)]
    epochs = [list(part.epoch(0)) for part in parts]
    assert {len(epoch) for epoch in epochs} == {len(part) for part in parts} == {len(parts[0])}
    together = Counter(tuple(row) for epoch in epochs for row in rows(epoch))
    assert together.keys() == {tuple(row) for row in alone}
    # Only as many batches come twice as the last round lacks.
    twice = sum(map(len, epochs)) - len(loader())
    assert 0 <= sum(together.values()) - len(alone) <= twice * 8


def test_buckets_waste_little_on_padding():
    random = np.random.default_rng(1)
    dataset = world([[1] * n for n in np.minimum(50, random.geometric(0.12, 4000) + 4)])
    histories = split(dataset, SplitConfig()).train
    batches = list(TrainLoader(dataset, histories, 64, 51, 0).epoch(0))
    padded = sum(batch.items_BT.numel() for batch in batches)
    real = sum(int(batch.lengths_B.sum()) for batch in batches)
    assert real / padded > 0.85


def test_query_batches_ask_each_query_once_with_its_last_items():
    seen = []
    for numbers, batch in query_batches(DATASET, PARTS.test, 16, 7):
        for number, length, items in zip(numbers, batch.lengths_B, batch.items_BT, strict=True):
            history = HISTORIES[PARTS.test.user[number]][:-1][-7:]
            assert items[:length].tolist() == history
            seen.append(int(number))
    assert sorted(seen) == list(range(len(PARTS.test)))


def test_flat_positions_lists_every_place_of_every_row():
    row, position = flat_positions(np.array([5, 9, 2]), np.array([7, 9, 5]))
    assert row.tolist() == [0, 0, 2, 2, 2]
    assert position.tolist() == [5, 6, 2, 3, 4]


def test_collate_carries_times_and_leaves_padding_at_zero():
    times = np.array([7, 8, 9, 5])
    dataset = SequenceDataset.from_arrays(np.array([1, 2, 3, 4]), np.array([0, 3, 4]), times)
    batch = collate(dataset, dataset.offsets[:-1], dataset.offsets[1:])
    assert batch.items_BT.tolist() == [[1, 2, 3], [4, PAD, PAD]]
    assert batch.timestamps_BT is not None
    assert batch.timestamps_BT.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch.timestamps_BT.dtype == batch.items_BT.dtype == torch.int64
    assert collate(DATASET, DATASET.offsets[:1], DATASET.offsets[1:2]).timestamps_BT is None


@pytest.mark.parametrize("random", [None, RANDOM])
@pytest.mark.parametrize("max_items", [2, 3, 10, 100])
def test_windows_make_each_item_behind_the_first_a_target_once(max_items, random):
    cut = windows(PARTS.train, max_items, random)
    assert len(cut) == len(windows(PARTS.train, max_items))
    assert (cut.end - cut.start).max() <= max_items
    row, target = flat_positions(cut.start + 1, cut.end)
    _, wanted = flat_positions(PARTS.train.start + 1, PARTS.train.end)
    assert sorted(target) == sorted(wanted)
    assert (DATASET.offsets[cut.user[row]] < target).all()
    assert (target < DATASET.offsets[cut.user[row] + 1]).all()


def test_only_the_first_window_of_a_history_is_short():
    cut = windows(Histories(np.array([0]), np.array([0]), np.array([12])), 5)
    assert list(zip(cut.start.tolist(), cut.end.tolist(), strict=True)) == [(7, 12), (3, 8), (0, 4)]


def test_windows_move_by_as_much_as_the_first_one_is_short():
    history = Histories(np.array([0]), np.array([0]), np.array([12]))
    drawn = [windows(history, 5, np.random.default_rng(seed)) for seed in range(40)]
    assert {(*map(int, cut.start), *map(int, cut.end)) for cut in drawn} == {
        (7, 3, 0, 12, 8, 4),
        (8, 4, 0, 12, 9, 5),
    }


def test_moving_windows_lie_elsewhere_in_another_epoch_and_hold_every_target_in_each():
    own = TrainLoader(DATASET, PARTS.train, 8, 5, seed=0, moving_windows=True)
    first, second = rows(own.epoch(0)), rows(own.epoch(1))
    assert sorted(first) == sorted(rows(own.epoch(0))) != sorted(second)
    wanted = Counter(item for h in HISTORIES for item in (h[:-2] if len(h) >= 3 else h)[1:])
    assert Counter(item for row in first for item in row[1:]) == wanted
    assert Counter(item for row in second for item in row[1:]) == wanted
    assert len(list(own.epoch(0))) == len(list(own.epoch(1))) == len(own)
