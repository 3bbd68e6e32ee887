"""HSTU as a recommender beyond the contract: its settings, and what it makes of times."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import PAD, Batch
from recsys.errors import InputError
from recsys.models.hstu_rec import HSTURec
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
ITEMS_BT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, PAD, PAD]])
LENGTHS_B = torch.tensor([5, 3])
TIMES_BT = torch.tensor([[5, 10, 400, 410, 9000], [7, 90, 8000, 0, 0]])
REAL_BT = ITEMS_BT != PAD


def small(**settings: Any) -> HSTURec:
    """A model that has learned to look at times."""
    torch.manual_seed(0)
    model = HSTURec(HSTURec.Config(**{"dim": 8, "max_len": 5, **settings}), NUM_ITEMS)
    for block in model.encoder.blocks:
        torch.nn.init.normal_(block.time_bias)
    return model


def batch(times_BT: torch.Tensor | None) -> Batch:
    return Batch(ITEMS_BT, LENGTHS_B, times_BT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "must be a multiple of model.num_heads, got 10 and 4"),
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"num_heads": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": math.nan}, "got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        HSTURec.Config(**settings)


@torch.no_grad()
def test_a_query_knows_how_long_ago_events_were_but_not_the_date():
    model = small().eval()
    now = model.query(batch(TIMES_BT))
    later = model.query(batch(TIMES_BT + 10**9 * REAL_BT))
    assert torch.equal(later, now)
    slower = model.query(batch(TIMES_BT * 1000))
    assert ((slower - now).abs().amax(dim=1) > 1e-3).all()


def test_no_query_sees_the_time_of_the_item_that_it_asks_for():
    model = small().eval()
    before = model.training_pairs(batch(TIMES_BT))
    moved_BT = TIMES_BT.clone()
    moved_BT[0, 4] += 10**6
    moved_BT[1, 2] += 10**6
    after = model.training_pairs(batch(moved_BT))
    assert torch.equal(after.query_ND, before.query_ND)


@torch.no_grad()
def test_a_step_beyond_the_longest_history_still_knows_the_times():
    model = small(max_len=2).eval()
    state = model.init_state(1)
    for place in range(5):
        event = slice(place, place + 1)
        query_BD, state = model.step(ITEMS_BT[0, event], state, TIMES_BT[0, event])
    last = Batch(ITEMS_BT[:1, 3:], torch.tensor([2]), TIMES_BT[:1, 3:])
    torch.testing.assert_close(query_BD, model.query(last))


def test_each_block_learns_from_the_times_of_a_log_that_has_them():
    model = small().train()
    loss, _ = next_item(Softmax(), COUNTS)(model, batch(TIMES_BT))
    loss.backward()
    gaps = {395, 390, 400, 10, 5, 405, 83}
    buckets = sorted({0, *(int(math.log(gap) / 0.301) for gap in gaps)})
    for block in model.encoder.blocks:
        assert block.time_bias.grad.nonzero().flatten().tolist() == buckets


@torch.no_grad()
def test_the_first_loss_is_that_of_guessing():
    loss, _ = next_item(Softmax(), COUNTS)(small().eval(), batch(None))
    assert loss.item() == pytest.approx(math.log(NUM_ITEMS), rel=0.1)


@torch.no_grad()
def test_dropout_is_for_training_alone():
    model = small(dropout=0.5).train()
    assert not torch.equal(model.encode(batch(None)), model.encode(batch(None)))
    model.eval()
    assert torch.equal(model.encode(batch(None)), model.encode(batch(None)))
