"""BERT4Rec beyond the contract: which items it hides, and that it is asked as it was trained."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import PAD, Batch
from recsys.errors import InputError
from recsys.models.bert4rec import BERT4Rec, draw_places
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
BATCH = Batch(
    torch.tensor([[3, 1, 4, 1, 5, 9], [9, 2, 6, PAD, PAD, PAD], [5, 3, PAD, PAD, PAD, PAD]]),
    torch.tensor([6, 3, 2]),
)


def small(**settings: Any) -> BERT4Rec:
    torch.manual_seed(0)
    return BERT4Rec(BERT4Rec.Config(**{"dim": 8, "max_len": 5, **settings}), NUM_ITEMS)


def hidden(
    lengths: list[int], max_items: int, mask_rate: float, last_rate: float, seed: int = 0
) -> list[list[int]]:
    """The hidden places of each history, in order."""
    torch.manual_seed(seed)
    places_BM, meant_BM = draw_places(torch.tensor(lengths), max_items, mask_rate, last_rate)
    rows = zip(places_BM, meant_BM, strict=True)
    return [sorted(places_M[meant_M].tolist()) for places_M, meant_M in rows]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "must be a multiple of model.num_heads, got 10 and 4"),
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"num_heads": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"hidden_dim": 0}, "must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"mask_rate": 0.0}, r"model.mask_rate must lie in \(0, 1\), got 0.0"),
        ({"mask_rate": 1.0}, r"model.mask_rate must lie in \(0, 1\), got 1.0"),
        ({"last_rate": -0.1}, r"model.last_rate must lie in \[0, 1\], got -0.1"),
        ({"last_rate": math.nan}, "got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        BERT4Rec.Config(**settings)


def test_a_share_of_the_items_behind_the_first_is_hidden_and_at_least_one():
    lengths = [2, 3, 6, 12, 21] * 40
    places = hidden(lengths, 21, mask_rate=0.3, last_rate=0.0)
    for length, hid in zip(lengths, places, strict=True):
        assert len(set(hid)) == max(1, round(0.3 * (length - 1)))
        assert min(hid) >= 1
        assert max(hid) < length


def test_each_place_behind_the_first_is_hidden_equally_often():
    places = hidden([6] * 4000, 9, mask_rate=0.4, last_rate=0.0)
    counts = torch.bincount(torch.tensor(places).flatten(), minlength=6) / 4000
    assert counts[0] == 0
    torch.testing.assert_close(counts[1:], torch.full((5,), 0.4), atol=0.04, rtol=0)


def test_in_a_share_of_the_histories_the_last_item_alone_is_hidden():
    lengths = [5, 11] * 2000
    places = hidden(lengths, 11, mask_rate=0.5, last_rate=0.25)
    alone = [hid == [length - 1] for length, hid in zip(lengths, places, strict=True)]
    assert sum(alone) / len(alone) == pytest.approx(0.25, abs=0.03)
    assert hidden([2, 7], 9, mask_rate=0.5, last_rate=1.0) == [[1], [6]]


def test_draws_do_not_depend_on_the_other_histories_nor_stay_the_same():
    among_long = hidden([4, 9], 9, 0.4, 0.2)[0]
    assert hidden([4, 5], 9, 0.4, 0.2)[0] == among_long
    drawn = {tuple(hidden([9], 9, 0.4, 0.0, seed)[0]) for seed in range(10)}
    assert len(drawn) > 5


@torch.no_grad()
def test_the_last_item_is_asked_for_in_training_as_the_next_one_is_in_use():
    model = small(last_rate=1.0).eval()
    pairs = model.training_pairs(BATCH)
    assert pairs.target_N.tolist() == [9, 6, 3]
    without_last = Batch(
        torch.tensor([[3, 1, 4, 1, 5], [9, 2, PAD, PAD, PAD], [5, PAD, PAD, PAD, PAD]]),
        torch.tensor([5, 2, 1]),
    )
    torch.testing.assert_close(pairs.query_ND, model.query(without_last))


@torch.no_grad()
def test_positions_are_counted_from_the_end():
    model = small().eval()
    model.positions.weight.zero_()
    model.positions.weight[1] = torch.randn(8)
    items_BT = torch.tensor([[7, 7, 7, 7, 7], [7, 7, 7, PAD, PAD]])
    encoded = model.encode(Batch(items_BT, torch.tensor([5, 3])))
    other_B = [(row - row[-1]).abs().amax(dim=1) for row in (encoded[0], encoded[1, :3])]
    assert [other.argmax().item() for other in other_B] == [3, 1]
    assert model.positions.weight.shape == (6, 8)


@torch.no_grad()
def test_a_hidden_item_is_found_from_both_sides():
    model = small(mask_rate=0.01, last_rate=0.0).eval()
    history = [3, 1, 4, 1, 5, 9]
    (place,) = hidden([6], 6, 0.01, 0.0)[0]
    for changed in {*range(6)} - {place}:
        queries = []
        for item in (history[changed], 12):
            torch.manual_seed(0)
            items = [*history[:changed], item, *history[changed + 1 :]]
            pairs = model.training_pairs(Batch(torch.tensor([items]), torch.tensor([6])))
            assert pairs.target_N.tolist() == [history[place]]
            queries.append(pairs.query_ND)
        assert (queries[0] - queries[1]).abs().max() > 1e-3


@torch.no_grad()
def test_encoding_hides_nothing_and_sees_both_ends():
    model = small().eval()
    before = model.encode(BATCH)
    items_BT = BATCH.items_BT.clone()
    items_BT[:, 1] = 12
    after = model.encode(Batch(items_BT, BATCH.lengths_B))
    changed_BT = (after - before).abs().amax(dim=2) > 1e-4
    assert changed_BT[BATCH.real_BT].all()


@torch.no_grad()
def test_positions_weigh_as_much_as_items_before_training():
    model = small(dim=64)
    item_std = model.items(torch.arange(1, NUM_ITEMS + 1)).std().item()
    assert model.positions.weight.std().item() == pytest.approx(item_std, rel=0.2)


def test_the_first_loss_is_that_of_guessing():
    loss, _ = next_item(Softmax(), COUNTS)(small().eval(), BATCH)
    assert loss.item() == pytest.approx(math.log(NUM_ITEMS), rel=0.1)


@torch.no_grad()
def test_dropout_is_for_training_alone():
    model = small(dropout=0.5).train()
    assert not torch.equal(model.encode(BATCH), model.encode(BATCH))
    model.eval()
    assert torch.equal(model.encode(BATCH), model.encode(BATCH))
