"""Recformer beyond the contract: how a history becomes a text, what is asked, what is hidden."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import NUM_ITEMS, batch_of, tiny_config, toy_features

from recsys.data.text import Attributes
from recsys.data.token_rows import TYPE_BITS
from recsys.data.tokenizer import train_tokenizer
from recsys.errors import InputError
from recsys.models.base import new_model
from recsys.models.recformer import (
    TOKENS_AT_ONCE,
    Recformer,
    draw_targets,
    hide_words,
    like_length,
)
from recsys.training.losses import MLMContrastive
from recsys.training.objectives import TextPretraining


def small(**settings: Any) -> Recformer:
    torch.manual_seed(0)
    config = dataclasses.replace(tiny_config("recformer"), **settings)
    model = new_model("recformer", config, NUM_ITEMS, toy_features("recformer"))
    assert isinstance(model, Recformer)
    return model.eval()


@torch.no_grad()
def test_a_history_is_cls_and_its_items_newest_first():
    model = small()
    token_BL, type_BL, item_BL, real_BL = model._text(batch_of([[3, 9], [12]]))
    # Item i is the key 4 and the words 5 + i % 8 and 13 + i // 8.
    assert token_BL.tolist() == [[1, 4, 6, 14, 4, 8, 13], [1, 4, 9, 14, 3, 3, 3]]
    assert type_BL.tolist() == [[0, 1, 2, 2, 1, 2, 2], [0, 1, 2, 2, 0, 0, 0]]
    assert item_BL.tolist() == [[0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 0, 0, 0]]
    assert real_BL.sum(1).tolist() == [7, 4]


@torch.no_grad()
def test_the_oldest_text_goes_where_a_history_is_too_long():
    model = small(max_tokens=6)
    token_BL, _, item_BL, _ = model._text(batch_of([[3, 9]]))
    assert token_BL.tolist() == [[1, 4, 6, 14, 4, 8]]
    assert item_BL.tolist() == [[0, 1, 1, 1, 2, 2]]


@pytest.mark.parametrize(
    ("pooling", "weights"),
    [
        ("mean", [1.0, 1, 1, 1, 1, 1, 1]),
        ("recent", [1, 1, 1, 1, 0.5, 0.5, 0.5]),
        ("newest", [1.0, 1, 1, 1, 0, 0, 0]),
    ],
)
@torch.no_grad()
def test_a_text_is_a_mean_in_which_older_items_weigh_less(pooling: str, weights: list[float]):
    model = small(pooling=pooling)
    batch = batch_of([[3, 9]])
    x_LD = model.encoder(*model._text(batch))[0]
    expected_D = torch.tensor(weights) @ x_LD
    torch.testing.assert_close(model.query(batch)[0], expected_D / expected_D.norm())


@torch.no_grad()
def test_training_moves_items_between_two_renewals():
    model = small()
    model.renew()
    before, query = model.item_vectors().clone(), model.query(batch_of([[3, 9]]))
    model.encoder.adaptor.weight.copy_(0.1 * torch.randn(model.config.dim, model.config.dim))
    assert not torch.allclose(model.item_vectors(), before, atol=1e-2)
    assert not torch.allclose(model.query(batch_of([[3, 9]])), query, atol=1e-3)


@pytest.mark.parametrize("pooling", ["cls", "mean", "recent", "newest"])
@torch.no_grad()
def test_scores_are_cosines_over_the_temperature(pooling: str):
    model = small(pooling=pooling, temperature=0.5)
    model.renew()
    batch = batch_of([[3, 9], [12]])
    query = model.query(batch)
    alone = torch.cat([model.query(batch_of([[item]])) for item in range(1, NUM_ITEMS + 1)])
    torch.testing.assert_close(query.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(model.item_vectors()[1:], alone / 0.5)
    torch.testing.assert_close(model.scorer()(batch)[:, 1:], query @ alone.T / 0.5)


@torch.no_grad()
def test_the_newest_item_is_read_in_the_light_of_the_older_ones():
    newest, mean = small(pooling="newest"), small(pooling="mean")
    alone = newest.query(batch_of([[9]]))
    torch.testing.assert_close(alone, mean.query(batch_of([[9]])))
    # The tokens of place 1 and [CLS], of what the encoder makes of the whole text.
    batch = batch_of([[3, 9]])
    token_BL, type_BL, item_BL, real_BL = newest._text(batch)
    x_LD = newest.encoder(token_BL, type_BL, item_BL, real_BL)[0]
    by_hand = torch.nn.functional.normalize(x_LD[:4].mean(0), dim=0)
    torch.testing.assert_close(newest.query(batch)[0], by_hand)
    assert not torch.allclose(by_hand, alone[0], atol=1e-4)


def test_texts_of_like_length_are_read_together():
    # In steps of 16 the lengths are 16, 16, 32, 64 and 256.
    count_B = torch.tensor([20, 4, 250, 5, 64])
    groups = [rows.tolist() for rows in like_length(count_B, 64)]
    assert groups == [[1, 3], [0], [4], [2]]
    assert [rows.tolist() for rows in like_length(count_B, 100_000)] == [[1, 3, 0, 4, 2]]


def test_reading_in_parts_is_reading_at_once(monkeypatch: pytest.MonkeyPatch):
    model = small(max_len=20, max_tokens=64)
    batch = batch_of([[3] * 12, [9], [*range(1, 13), 5, 4, 2], [2, 5], [7, 7, 8]])
    found = {}
    for places in (16, 100_000):
        monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", places)
        model.zero_grad()
        query_BD = model.query(batch)
        (query_BD * torch.linspace(0, 1, query_BD.numel()).view_as(query_BD)).sum().backward()
        found[places] = query_BD, *(p.grad for p in model.parameters() if p.grad is not None)
    for parts, at_once in zip(*found.values(), strict=True):
        torch.testing.assert_close(parts, at_once)


@torch.no_grad()
def test_the_table_stays_when_its_stage_is_over():
    model = small(refresh_epochs=2)
    for epoch, moves in ((0, True), (1, True), (2, False), (7, False)):
        before = model.items.vectors().clone()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.start_epoch(epoch)
        assert torch.equal(model.items.vectors(), before) != moves
    assert not model.training


def test_as_many_different_places_as_asked_for_are_drawn_and_never_the_first():
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        place_N, row_N = draw_targets(torch.tensor([2, 7]), 3)
        assert row_N.tolist() == [0, 1, 1, 1]
        assert place_N[0] == 1
        assert len(set(place_N[1:].tolist())) == 3
        seen |= set(place_N[1:].tolist())
    assert seen == {1, 2, 3, 4, 5, 6}


def test_words_are_hidden_at_their_rate_and_mostly_by_the_mask():
    torch.manual_seed(0)
    token_BL = torch.randint(5, 1000, (200, 100))
    word_BL = torch.ones_like(token_BL, dtype=torch.bool)
    word_BL[:, :10] = False
    hidden_BL, seen_BL = hide_words(token_BL, word_BL, 0.2, 2, 1000)
    assert not hidden_BL[:, :10].any()
    assert hidden_BL[:, 10:].float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(seen_BL[~hidden_BL], token_BL[~hidden_BL])
    assert (seen_BL[hidden_BL] == 2).float().mean().item() == pytest.approx(0.8, abs=0.02)
    same = (seen_BL == token_BL)[hidden_BL].float().mean().item()
    assert same == pytest.approx(0.1, abs=0.02)


def test_one_word_at_least_is_hidden():
    hidden_BL, _ = hide_words(torch.tensor([[7, 8]]), torch.tensor([[False, True]]), 1e-9, 2, 10)
    assert hidden_BL.tolist() == [[False, True]]


def test_the_loss_of_pretraining_by_hand():
    model = small(targets=1)
    batch = batch_of([[3, 9], [12, 5], [1, 9]])
    torch.manual_seed(1)
    found = model.pretraining(batch, 0.3)
    torch.manual_seed(1)
    loss, logs = TextPretraining(MLMContrastive(mlm_weight=0.5, mask_rate=0.3), torch.float32)(
        model, batch
    )
    scores = (found.query_ND @ found.target_ND.T).detach()
    assert found.target_N.tolist() == [9, 5, 9]
    # The two histories with the same next item are no negatives of each other.
    others = {0: [0, 1], 1: [0, 1, 2], 2: [1, 2]}
    contrast = sum(
        math.log(sum(math.exp(scores[row, other]) for other in others[row])) - scores[row, row]
        for row in range(3)
    )
    log_words = found.word_MW.detach().log_softmax(1)
    words = -log_words[torch.arange(len(found.label_M)), found.label_M].mean()
    assert loss.item() == pytest.approx(float(contrast / 3 + 0.5 * words), abs=1e-5)
    assert logs == {"pairs": 3.0}


def test_items_of_one_text_are_no_negatives_of_each_other():
    model = small(targets=1)
    model.items.features[12] = model.items.features[9]
    found = model.pretraining(batch_of([[3, 12], [12, 5], [1, 9], [4, 12]]), 0.3)
    assert found.target_N.tolist() == [9, 5, 9, 9]
    loss, _ = TextPretraining(MLMContrastive(mlm_weight=0.0), torch.float32)(
        model, batch_of([[3, 12], [1, 9]])
    )
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_a_word_is_seen_as_another_that_the_items_may_hold():
    model = small(vocab_size=30_000)
    words = int(model.items.features.max()) >> TYPE_BITS
    assert model.num_words == words + 1 < 300


def test_an_encoder_that_asks_for_more_than_its_weights_hold_is_refused(tmp_path: Path):
    small(vocab_size=200).save_encoder(tmp_path, num_tokens=200)
    file = tmp_path / "config.json"
    sizes = json.loads(file.read_text())
    for name, value in (("vocab_size", 2 * 10**9), ("dim", 2**40), ("num_layers", 10**9)):
        file.write_text(json.dumps({**sizes, name: value}))
        with pytest.raises(InputError, match=r"numbers and more, the weights have [\d,]+ bytes"):
            Recformer.Config(encoder=str(tmp_path)).resolved()


def test_another_window_than_the_encoders_is_told(tmp_path: Path):
    model = small(vocab_size=200)
    model.save_encoder(tmp_path, num_tokens=200)
    train_tokenizer(Attributes(["title"], [["a b"]]), vocab_size=100).save(tmp_path)
    config = Recformer.Config(encoder=str(tmp_path)).resolved()
    told: list[str] = []
    Recformer(config, NUM_ITEMS, toy_features("recformer")).begin(told.append)
    assert told[:1] == [f"{tmp_path}: its window of {model.config.window} tokens is 64 here"]


def test_an_encoder_saved_alone_reads_as_it_did(tmp_path: Path):
    from recsys.layers.text_encoder import TextEncoder

    model = small()
    model.save_encoder(tmp_path, 20)
    said: list[str] = []
    read = TextEncoder.from_pretrained(
        tmp_path, num_tokens=20, max_tokens=32, max_items=6, report=said.append, window=4
    ).eval()
    text = model._text(batch_of([[3, 9], [12]]))
    torch.testing.assert_close(read(*text), model.encoder(*text))
    assert said == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "model.temperature must be above 0, got 0.0"),
        ({"window": 1}, "model.window must be at least 2, got 1"),
        ({"max_item_tokens": 2}, "model.max_item_tokens must be at least 3, got 2"),
        ({"num_heads": 3}, "must be a multiple of model.num_heads"),
        ({"refresh_epochs": 0}, "model.refresh_epochs must be at least 1"),
        ({"dropout": 1.0}, "model.dropout must lie in"),
        ({"frozen_layers": 1}, "model.frozen_layers keeps what model.encoder names: name one"),
        ({"frozen_layers": 0}, "model.frozen_layers must be at least 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Recformer.Config(), **settings)


def test_tokens_of_another_tokenizer_are_refused():
    with pytest.raises(InputError, match=r"the items hold token 14, model\.vocab_size is 12"):
        small(vocab_size=12)


def test_tokens_are_needed():
    with pytest.raises(InputError, match="recformer needs the tokens of the items"):
        new_model("recformer", Recformer.Config(), 5)
