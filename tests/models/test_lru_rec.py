"""LRURec beyond the contract: the paper's sizes, its start, its settings."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.models.lru_rec import LRURec
from recsys.retrieval.state import state_to_bytes
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
BATCH = Batch(torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]]), torch.tensor([5, 3]))


def small(**settings: Any) -> LRURec:
    torch.manual_seed(0)
    return LRURec(LRURec.Config(**{"dim": 8, **settings}), NUM_ITEMS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"state_dim": 0}, "must be at least 1"),
        ({"hidden_dim": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": math.nan}, "got nan"),
        ({"min_radius": -0.1}, r"rise within \[0, 1\), got -0.1 and 0.99"),
        ({"min_radius": 0.9, "max_radius": 0.8}, "got 0.9 and 0.8"),
        ({"max_radius": 1.0}, "got 0.8 and 1.0"),
        ({"max_radius": math.nan}, "got 0.8 and nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LRURec.Config(**settings)


@pytest.mark.parametrize(("state_dim", "hidden_dim"), [(None, None), (16, 32), (5, 7)])
def test_a_state_is_2_dim_wide_and_a_feed_forward_4_dim_where_not_said(state_dim, hidden_dim):
    model = small(num_layers=3, state_dim=state_dim, hidden_dim=hidden_dim)
    state, wide = state_dim or 16, hidden_dim or 32
    lru = 3 * state + 2 * state * 8 + 2 * state + 8 * 2 * state + 8
    block = lru + 2 * 8 * wide + wide + 8 + 2 * 16
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == (NUM_ITEMS + 1) * 8 + 16 + 3 * block
    numbers = sum(part.nbytes for (part,) in model.init_state(1))
    assert numbers == 8 * 3 * state
    assert len(state_to_bytes(model.init_state(1), "")) >= numbers


def test_the_first_loss_is_that_of_guessing():
    loss, _ = next_item(Softmax(), COUNTS)(small().eval(), BATCH)
    assert loss.item() == pytest.approx(math.log(NUM_ITEMS), rel=0.1)


def test_decays_start_between_the_radii_of_the_settings():
    model = small(min_radius=0.5, max_radius=0.6)
    radii = torch.cat([torch.exp(-block.mixer.nu_log.exp()) for block in model.blocks])
    assert radii.min() > 0.499
    assert radii.max() < 0.601


@torch.no_grad()
def test_every_event_is_normed_before_the_first_block_and_behind_the_last():
    model = small().eval()
    torch.testing.assert_close(model.encode(BATCH).std(2, correction=0), torch.ones(2, 5))
    before = model.encode(BATCH)
    model.items.weight.mul_(100)
    torch.testing.assert_close(model.encode(BATCH), before, atol=1e-2, rtol=1e-2)
