"""An objective is the model's own pairs under a loss, with negatives where the loss wants them."""

import dataclasses

import pytest
import torch
from torch import Tensor

from recsys.batch import PAD, Batch
from recsys.models.base import SequenceModel
from recsys.training.losses import (
    BCE,
    GBCE,
    PAIR_LOSSES,
    BPRMax,
    Cloze,
    SampledSoftmax,
    Softmax,
    TOP1Max,
)
from recsys.training.objectives import NextItem, next_item

NUM_ITEMS = 7
COUNTS = torch.tensor([0, 5, 1, 1, 1, 1, 1, 90])
BATCH = Batch(torch.tensor([[1, 2, 3, 4], [6, 5, PAD, PAD]]), torch.tensor([4, 2]))


class Lookup(SequenceModel):
    """A model whose query is the vector of the newest item."""

    def __init__(self) -> None:
        super().__init__()
        self.items = torch.nn.Embedding(NUM_ITEMS + 1, 4)
        self.product = torch.nn.Linear(4, 4)
        self.dtypes: set[torch.dtype] = set()

    def encode(self, batch: Batch) -> Tensor:
        encoded = self.product(self.items(batch.items_BT))
        self.dtypes.add(encoded.dtype)
        return encoded

    def item_vectors(self) -> Tensor:
        return self.items.weight


class Reader(Lookup):
    """The same, as if its items were texts."""

    reads_tokens = True


@pytest.fixture
def model() -> Lookup:
    torch.manual_seed(0)
    return Lookup()


@pytest.mark.parametrize("kind", [Softmax, Cloze])
def test_a_softmax_over_the_catalogue_needs_no_negatives(model: Lookup, kind):
    objective = next_item(kind(), COUNTS)
    loss, logs = objective(model, BATCH)
    assert objective.sampler is None
    assert logs == {"pairs": 4.0}
    assert torch.equal(loss, Softmax()(model.training_pairs(BATCH), model.item_vectors()))


@pytest.mark.parametrize("loss", [SampledSoftmax(num_negatives=3), BCE(), GBCE(num_negatives=3)])
def test_a_sampled_loss_gets_negatives_from_the_generator(model: Lookup, loss):
    objective = next_item(loss, COUNTS)
    torch.manual_seed(5)
    found, logs = objective(model, BATCH)
    pairs = model.training_pairs(BATCH)
    generator = torch.Generator().manual_seed(5)
    expected = loss(pairs, model.item_vectors(), objective.sampler.draw(pairs.target_N, generator))
    assert torch.equal(found, expected)
    assert not torch.equal(objective(model, BATCH)[0], found)
    assert logs == {"pairs": 4.0}


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (SampledSoftmax(num_negatives=3), (3,)),
        (SampledSoftmax(num_negatives=3, per_pair=True), (4, 3)),
        (SampledSoftmax(negatives="in_batch"), (4,)),
        (BCE(num_negatives=2), (4, 2)),
        (GBCE(num_negatives=5, per_pair=False), (5,)),
        (BPRMax(num_negatives=3), (3,)),
        (TOP1Max(num_negatives=3, per_pair=True), (4, 3)),
        (BPRMax(num_negatives=3, negatives="in_batch_and_popularity"), (4 + 3,)),
    ],
)
def test_negatives_are_as_many_as_the_settings_of_the_loss_say(loss, shape):
    drawn = next_item(loss, COUNTS).sampler.draw(torch.tensor([1, 2, 3, 4]), torch.Generator())
    assert drawn.items.shape == shape


def test_popular_negatives_follow_the_counts():
    loss = SampledSoftmax(num_negatives=10_000, negatives="popularity")
    drawn = next_item(loss, COUNTS).sampler.draw(torch.tensor([1]), torch.Generator())
    share = torch.bincount(drawn.items, minlength=NUM_ITEMS + 1) / 10_000
    torch.testing.assert_close(share, COUNTS / 100, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", [BCE, GBCE, SampledSoftmax, BPRMax, TOP1Max])
def test_popularity_is_taken_to_the_power_that_the_loss_says(kind):
    loss = kind(num_negatives=10_000, negatives="popularity", per_pair=False, alpha=0.0)
    drawn = next_item(loss, COUNTS).sampler.draw(torch.tensor([1]), torch.Generator())
    share = torch.bincount(drawn.items, minlength=NUM_ITEMS + 1)[1:] / 10_000
    torch.testing.assert_close(share, torch.full((NUM_ITEMS,), 1 / 7), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_every_loss_reaches_every_parameter(model: Lookup, kind):
    loss, _ = next_item(kind(), COUNTS)(model, BATCH)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_on_a_cpu_bfloat16_serves_the_loss_and_not_the_model(model: Lookup):
    exact, _ = next_item(Softmax(), COUNTS)(model, BATCH)
    low, _ = next_item(Softmax(), COUNTS, torch.bfloat16)(model, BATCH)
    assert model.dtypes == {torch.float32}
    assert low.dtype == torch.float32
    assert low != exact
    torch.testing.assert_close(low, exact, atol=0.02, rtol=0)


def test_bfloat16_serves_every_model_where_it_is_wanted_everywhere(model: Lookup):
    loss, _ = next_item(Softmax(), COUNTS, torch.bfloat16, everywhere=True)(model, BATCH)
    assert model.dtypes == {torch.bfloat16}
    assert loss.dtype == torch.float32


def test_on_a_cpu_bfloat16_serves_a_model_that_reads_texts():
    model = Reader()
    next_item(Softmax(), COUNTS, torch.bfloat16)(model, BATCH)
    assert model.dtypes == {torch.bfloat16}


def test_an_objective_cannot_be_changed():
    objective = next_item(Softmax(), COUNTS)
    assert isinstance(objective, NextItem)
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.dtype = torch.bfloat16
