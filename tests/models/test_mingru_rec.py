"""minGRU recommender beyond the contract: its two cells, its sizes, its settings."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.models.mingru_rec import MinGRURec
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
BATCH = Batch(torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 7, 7]]), torch.tensor([5, 5]))


def small(**settings: Any) -> MinGRURec:
    torch.manual_seed(0)
    return MinGRURec(MinGRURec.Config(**{"dim": 8, **settings}), NUM_ITEMS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"expansion": 0}, "must be at least 1"),
        ({"hidden_dim": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"cell": "rnn"}, "model.cell must be one of gru, lstm, got 'rnn'"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": math.nan}, "got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        MinGRURec.Config(**settings)


@pytest.mark.parametrize(("cell", "gates"), [("gru", 1), ("lstm", 2)])
@pytest.mark.parametrize("hidden_dim", [None, 10])
def test_a_cell_is_expansion_dim_wide_and_a_feed_forward_4_dim_where_not_said(
    cell, gates, hidden_dim
):
    model = small(num_layers=2, cell=cell, expansion=3, hidden_dim=hidden_dim)
    state, wide = 3 * 8, hidden_dim or 32
    mixer = (gates + 1) * state * (8 + 1) + 8 * state + 8
    block = mixer + 2 * 8 * wide + wide + 8 + 2 * 16
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == (NUM_ITEMS + 1) * 8 + 16 + 2 * block
    assert sum(part.nbytes for (part,) in model.init_state(1)) == 4 * 2 * state


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_first_loss_is_that_of_guessing(cell):
    loss, _ = next_item(Softmax(), COUNTS)(small(cell=cell).eval(), BATCH)
    assert loss.item() == pytest.approx(math.log(NUM_ITEMS), rel=0.1)


@torch.no_grad()
def test_a_minlstm_goes_on_item_by_item_as_it_encodes():
    model = small(cell="lstm").eval()
    state, encoded = model.init_state(2), model.encode(BATCH)
    for place, items_B in enumerate(BATCH.items_BT.unbind(1)):
        query_BD, state = model.step(items_B, state)
        torch.testing.assert_close(query_BD, encoded[:, place])
