"""State-space recommender beyond the contract: over true time, its sizes, its settings."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import PAD, Batch
from recsys.errors import InputError
from recsys.models.lssl_rec import LSSLRec
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item
from recsys.training.optimizers import adamw

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
DAY = 86_400


def small(**settings: Any) -> LSSLRec:
    torch.manual_seed(0)
    return LSSLRec(LSSLRec.Config(**{"dim": 8, "dropout": 0.0, **settings}), NUM_ITEMS)


def timed(**settings: Any) -> LSSLRec:
    """Over gaps, with clocks that are no longer at their start."""
    model = small(time="gaps", **settings)
    for block in model.encoder.blocks:
        torch.nn.init.normal_(block.mixer.clock.bend_K, std=0.3)
    return model.eval()


def histories(batch: int = 3, steps: int = 9) -> Batch:
    torch.manual_seed(1)
    items_BT = torch.randint(1, NUM_ITEMS + 1, (batch, steps))
    times_BT = 1_500_000_000 + torch.randint(0, 10 * DAY, (batch, steps)).cumsum(1)
    return Batch(items_BT, torch.full((batch,), steps), times_BT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"state_dim": 0}, "must be at least 1"),
        ({"hidden_dim": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"time": "hours"}, "model.time must be one of events, gaps, got 'hours'"),
        ({"min_dt": 0.0}, "must rise above 0, got 0.0 and 1.0"),
        ({"min_dt": 2.0}, "got 2.0 and 1.0"),
        ({"max_dt": math.nan}, "got 0.01 and nan"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": math.nan}, "got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LSSLRec.Config(**settings)


@pytest.mark.parametrize(("time", "more"), [("events", 0), ("gaps", 8)])
@pytest.mark.parametrize("state_dim", [None, 5])
def test_a_state_takes_8_bytes_a_channel_and_8_for_the_time(time, more, state_dim):
    model = small(time=time, state_dim=state_dim)
    parts = [part for layer in model.init_state(1) for part in layer]
    assert sum(part.nbytes for part in parts) == 2 * (8 * (state_dim or 8) + more)


@pytest.mark.parametrize("time", ["events", "gaps"])
def test_the_first_loss_is_that_of_guessing(time):
    loss, _ = next_item(Softmax(), COUNTS)(small(time=time).eval(), histories())
    assert loss.item() == pytest.approx(math.log(NUM_ITEMS), rel=0.1)


@torch.no_grad()
def test_over_gaps_it_goes_on_item_by_item_as_it_encodes():
    model, batch = timed(), histories(steps=40)
    state, encoded = model.init_state(3), model.encode(batch)
    assert batch.timestamps_BT is not None
    for place, items_B in enumerate(batch.items_BT.unbind(1)):
        query_BD, state = model.step(items_B, state, batch.timestamps_BT[:, place])
        torch.testing.assert_close(query_BD, encoded[:, place], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_over_gaps_padding_does_not_change_the_query():
    model, batch = timed(), histories()
    pad_B3 = torch.full((3, 3), PAD)
    padded = Batch(
        torch.cat([batch.items_BT, pad_B3], dim=1),
        batch.lengths_B,
        torch.cat([batch.timestamps_BT, pad_B3], dim=1),
    )
    torch.testing.assert_close(model.query(padded), model.query(batch))


@torch.no_grad()
def test_over_events_times_say_nothing_and_over_gaps_they_must_be_there():
    batch = histories()
    untimed = Batch(batch.items_BT, batch.lengths_B)
    events, gaps = small().eval(), timed()
    assert torch.equal(events.encode(batch), events.encode(untimed))
    with pytest.raises(InputError, match="these histories have none"):
        gaps.encode(untimed)


def test_over_gaps_it_learns_what_a_pause_means():
    """Item 1 and 2 in any order, with a pause between them or not: what follows says which."""
    model = small(time="gaps", dim=16, num_layers=1).train()
    items_BT = torch.tensor([[1, 2, 5], [1, 2, 6], [2, 1, 7], [2, 1, 8]])
    times_BT = torch.tensor([[0, 30, 60], [0, DAY, DAY + 60]]).repeat(2, 1)
    batch = Batch(items_BT, torch.full((4,), 3), times_BT)
    optimizer = adamw(model, lr=0.01, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        next_item(Softmax(), COUNTS)(model, batch)[0].backward()
        optimizer.step()
    seen = Batch(items_BT[:, :2], torch.full((4,), 2), times_BT[:, :2])
    assert model.eval().scorer()(seen).argmax(dim=1).tolist() == [5, 6, 7, 8]
