"""GRU4Rec beyond the contract: its settings, its tables, what it forgets and what it costs."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import PAD, Batch
from recsys.errors import InputError
from recsys.models.gru4rec import GRU4Rec
from recsys.training.losses import PAIR_LOSSES, Softmax
from recsys.training.objectives import next_item
from recsys.training.optimizers import adamw

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
BATCH = Batch(
    torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, PAD, PAD], [5, 3, PAD, PAD, PAD]]),
    torch.tensor([5, 3, 2]),
)


def small(**settings: Any) -> GRU4Rec:
    torch.manual_seed(0)
    return GRU4Rec(GRU4Rec.Config(**{"dim": 8, "max_len": 5, **settings}), NUM_ITEMS)


def matrices(model: GRU4Rec) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"hidden_dim": 0}, "must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"hidden_dropout": math.nan}, r"model.hidden_dropout must lie in \[0, 1\), got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        GRU4Rec.Config(**settings)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
@pytest.mark.parametrize("item_tables", ["shared", "separate"])
def test_padding_rows_are_zero_and_never_trained(kind, item_tables):
    model = small(item_tables=item_tables, dropout=0.0).train()
    before = model.item_vectors().detach().clone()
    objective = next_item(kind(), COUNTS)
    optimizer = adamw(model, lr=0.01, weight_decay=0.1)
    for _ in range(3):
        objective(model, BATCH)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not any(table.weight[PAD].any() for table in model.tables)
    assert (model.item_vectors() != before)[1:].any(dim=1).all()


def test_the_first_loss_is_that_of_guessing():
    loss, _ = next_item(Softmax(), COUNTS)(small().eval(), BATCH)
    assert loss.item() == pytest.approx(math.log(NUM_ITEMS), rel=0.1)


def test_a_shared_table_is_read_from_and_scored_with():
    model = small()
    assert matrices(model) == 13 * 8 + 2 * 3 * 8 * 8
    model.encode(BATCH).sum().backward()
    assert model.item_vectors().grad.any()


def test_separate_tables_are_one_to_read_from_and_one_to_score_with():
    model = small(item_tables="separate")
    assert matrices(model) == 2 * 13 * 8 + 2 * 3 * 8 * 8
    model.encode(BATCH).sum().backward()
    assert model.item_vectors().grad is None
    assert model.tables[0].weight.grad.any()


@pytest.mark.parametrize(("cell", "gates", "states"), [("gru", 3, 1), ("lstm", 4, 2)])
@torch.no_grad()
def test_layers_may_be_wider_than_items(cell, gates, states):
    model = small(hidden_dim=20, num_layers=2, cell=cell, item_tables="separate").eval()
    assert matrices(model) == 2 * 13 * 8 + gates * (8 * 20 + 3 * 20 * 20) + 8 * 20
    assert model.encode(BATCH).shape == (3, 5, 8)
    state = model.init_state(3)
    assert sum(part.nbytes for layer in state for part in layer) == 3 * 4 * 2 * 20 * states
    for items_B in BATCH.items_BT[:, :2].unbind(1):
        query_BD, state = model.step(items_B, state)
    two = Batch(BATCH.items_BT[:, :2], torch.full((3,), 2))
    torch.testing.assert_close(query_BD, model.query(two))


@torch.no_grad()
def test_a_query_knows_the_order_of_its_history():
    model = small().eval()
    one, other = model.query(Batch(torch.tensor([[1, 2, 3], [2, 1, 3]]), torch.tensor([3, 3])))
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("settings", [{"dropout": 0.0}, {"hidden_dropout": 0.0}])
@torch.no_grad()
def test_either_dropout_is_for_training_alone(settings):
    model = small(**{"dropout": 0.5, "hidden_dropout": 0.5, **settings}).train()
    assert not torch.equal(model.encode(BATCH), model.encode(BATCH))
    model.eval()
    assert torch.equal(model.encode(BATCH), model.encode(BATCH))
