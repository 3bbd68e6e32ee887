"""Every sequence model may know its items by fixed vectors, alone or beside learned ones."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_models import (
    HISTORIES,
    LEARNED,
    NUM_ITEMS,
    SHORT,
    STEPWISE,
    batch_of,
    stepped,
    tiny_config,
)

from recsys.batch import Batch
from recsys.checkpoint import CONFIG, WEIGHTS, load_model, write_json, write_tensors
from recsys.config import to_dict
from recsys.errors import InputError
from recsys.layers.item_encoder import Whitening, with_items
from recsys.models.base import ItemConfig, SequenceModel, model_class, new_model
from recsys.training.losses import PAIR_LOSSES, Softmax
from recsys.training.objectives import next_item
from recsys.training.optimizers import adamw

BY_ITEM_ENCODER = [n for n in LEARNED if issubclass(model_class(n).Config, ItemConfig)]
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)


def features(items: int = NUM_ITEMS, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    known = torch.randn(items, width, generator=generator)
    return torch.cat([torch.zeros(1, width), known])


def config_of(name: str, encoder: str, experts: int = 1) -> ItemConfig:
    return dataclasses.replace(tiny_config(name), item_encoder=encoder, item_experts=experts)


def built(name: str, encoder: str, experts: int = 1) -> SequenceModel:
    torch.manual_seed(0)
    model = new_model(name, config_of(name, encoder, experts), NUM_ITEMS, features()).eval()
    assert isinstance(model, SequenceModel)
    return model


@pytest.mark.parametrize("encoder", ["text", "id+text"])
@pytest.mark.parametrize("name", BY_ITEM_ENCODER)
def test_one_step_changes_every_trained_parameter_and_no_fixed_vector(name: str, encoder: str):
    model = built(name, encoder).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss, _ = next_item(Softmax(), COUNTS)(model, batch_of(HISTORIES))
    loss.backward()
    adamw(model, lr=0.01, weight_decay=0.0).step()
    after = model.state_dict()
    unchanged = {key for key, value in after.items() if torch.equal(value, before[key])}
    assert unchanged == {key for key in after if key.rpartition(".")[2] == "features"} != set()


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("encoder", ["text", "id+text"])
@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_with_bfloat16_products_every_loss_is_near_that_without(kind, encoder: str, everywhere):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = built("gru4rec", encoder)
        torch.manual_seed(1)
        loss, _ = next_item(kind(), COUNTS, dtype, everywhere)(model, batch_of(HISTORIES))
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("encoder", ["text", "id+text"])
@pytest.mark.parametrize("name", BY_ITEM_ENCODER)
@torch.no_grad()
def test_a_run_folder_brings_the_fixed_vectors_back(name: str, encoder: str, tmp_path: Path):
    model = built(name, encoder)
    settings = {"name": name, **to_dict(config_of(name, encoder))}
    write_json(tmp_path / CONFIG, {"model": settings, "dataset": {"items": NUM_ITEMS}})
    write_tensors(tmp_path / WEIGHTS, model.state_dict())
    loaded = load_model(tmp_path)
    assert isinstance(loaded, SequenceModel)
    assert torch.equal(loaded.query(batch_of(SHORT)), model.query(batch_of(SHORT)))
    assert torch.equal(loaded.item_vectors(), model.item_vectors())


@pytest.mark.parametrize("name", [name for name in STEPWISE if name in BY_ITEM_ENCODER])
@torch.no_grad()
def test_going_on_item_by_item_equals_encoding_the_whole_history(name: str):
    model = built(name, "id+text")
    items_BT = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    encoded = model.encode(Batch(items_BT, torch.tensor([6, 6])))
    torch.testing.assert_close(stepped(model, items_BT), encoded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoder", ["text", "id+text"])
@pytest.mark.parametrize("name", BY_ITEM_ENCODER)
@torch.no_grad()
def test_a_new_item_has_the_vector_of_one_with_the_same_text_and_changes_no_other(
    name: str, encoder: str
):
    model = built(name, encoder)
    if encoder == "id+text":  # a new item has no learned vector: nor has the one it is held against
        for module in model.modules():
            if hasattr(module, "table"):
                module.table.weight[5] = 0
    place_N = torch.tensor([NUM_ITEMS + 1, NUM_ITEMS + 2])
    grown = with_items(model, place_N, features()[[5, 9]])
    assert isinstance(grown, SequenceModel)
    vectors, before = grown.item_vectors(), model.item_vectors()
    assert vectors.shape == (NUM_ITEMS + 3, before.shape[1])
    torch.testing.assert_close(vectors[: NUM_ITEMS + 1], before)
    torch.testing.assert_close(vectors[NUM_ITEMS + 1], before[5])
    new, old = batch_of([[3, NUM_ITEMS + 1]]), batch_of([[3, 5]])
    torch.testing.assert_close(grown.query(new), model.query(old))


@torch.no_grad()
def test_an_item_with_another_text_takes_its_vector():
    model = built("sasrec", "text")
    changed = with_items(model, torch.tensor([2]), features()[[5]])
    assert isinstance(changed, SequenceModel)
    torch.testing.assert_close(changed.item_vectors()[2], model.item_vectors()[5])
    torch.testing.assert_close(changed.item_vectors()[3], model.item_vectors()[3])


def test_items_known_by_learned_vectors_cannot_be_added_to():
    with pytest.raises(ValueError, match="by learned vectors alone"):
        with_items(built("sasrec", "id"), torch.tensor([13]), torch.zeros(1, 7))


def test_a_model_that_needs_vectors_says_so():
    with pytest.raises(InputError, match=r"item_encoder=text needs vectors of the items"):
        new_model("sasrec", config_of("sasrec", "text"), NUM_ITEMS)


@pytest.mark.parametrize(("name", "width"), [("sasrec", 16), ("gru4rec", 16)])
@pytest.mark.parametrize("experts", [1, 3])
@torch.no_grad()
def test_vectors_from_text_start_as_long_as_learned_ones(name: str, width: int, experts: int):
    torch.manual_seed(0)
    config = dataclasses.replace(config_of(name, "text", experts))
    many = features(items=2000, width=30)
    vectors = new_model(name, config, 2000, many).item_vectors()[1:]
    spread = vectors - vectors.mean(0)
    assert spread.square().sum(1).mean().sqrt().item() == pytest.approx(0.1, rel=0.5)


@torch.no_grad()
def test_vectors_with_a_mean_far_above_their_spread_survive_bfloat16():
    torch.manual_seed(0)
    features_VF = torch.randn(40, 16) + 1000
    adaptor = Whitening(features_VF, 8)
    with torch.autocast("cpu", torch.bfloat16):
        low = adaptor(features_VF[1:])
    torch.testing.assert_close(low.float(), adaptor(features_VF[1:]), atol=1e-3, rtol=0.02)


@pytest.mark.parametrize("features_VF", [torch.zeros(9, 4), torch.full((9, 4), 0.5)])
def test_equal_vectors_of_all_items_do_not_drown_the_learned_ones(features_VF):
    adaptor = Whitening(features_VF, 8)
    adaptor(features_VF).sum().backward()
    with torch.no_grad():
        adaptor.mean -= 1e-3  # as a first step of the optimizer does
        assert adaptor(features_VF).abs().max() < 0.01


def test_the_gate_of_experts_is_noisy_in_training_alone():
    model = built("sasrec", "text", experts=3)
    assert torch.equal(model.item_vectors(), model.item_vectors())
    model.train()
    assert not torch.equal(model.item_vectors(), model.item_vectors())
