"""Items and histories as key-value sentences in tokens."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys.data.text import Attributes
from recsys.data.tokenizer import Tokenizer, train_tokenizer
from recsys.data.tokens import ItemTokens, history_tokens, item_tokens
from recsys.errors import InputError

CATALOGUE = Attributes(
    ["title", "brand"],
    [
        ["red brush", "soap soap", None, "red", None],
        ["acme", None, None, "acme", "brush soap"],
    ],
)
KEYS = {"title", "brand"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token for each word that the tests use."""
    texts = ["red brush soap acme title brand long word"] * 2
    return train_tokenizer(Attributes(["title"], [texts]), vocab_size=500)


def said(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    """Tokens as they are written, [PAD] as nothing."""
    names = (tokenizer._tokenizer.id_to_token(token) for token in tokens.tolist())
    return " ".join(name for name in names if name != "[PAD]")


def sentences(tokens: ItemTokens, tokenizer: Tokenizer) -> list[str]:
    """The sentences of items 0..V."""
    ends = tokens.offsets.tolist()
    return [said(tokenizer, tokens.token_L[start:end]) for start, end in pairwise(ends)]


def test_an_item_is_its_keys_and_values_and_padding_owns_nothing(tokenizer):
    tokens = item_tokens(CATALOGUE, tokenizer)
    assert sentences(tokens, tokenizer) == [
        "",
        "title red brush brand acme",
        "title soap soap",
        "",
        "title red brand acme",
        "brand brush soap",
    ]
    assert tokens.num_items == 5
    assert tokens.cut_share == 0
    assert tokens.type_L.tolist() == [1, 2, 2, 1, 2, 1, 2, 2, 1, 2, 1, 2, 1, 2, 2]
    kinds = (tokens.token_L.dtype, tokens.type_L.dtype, tokens.offsets.dtype)
    assert kinds == ("int32", "uint8", "int64")


def test_each_value_is_cut_on_its_own_and_the_share_is_counted(tokenizer):
    catalogue = Attributes(["title", "brand"], [["soap " * 9, "red"], ["acme acme", "brush " * 3]])
    tokens = item_tokens(catalogue, tokenizer, max_attribute_tokens=2)
    assert sentences(tokens, tokenizer)[1:] == [
        "title soap soap brand acme acme",
        "title red brand brush brush",
    ]
    assert tokens.cut_share == 2 / 4


def test_an_item_ends_at_its_limit(tokenizer):
    tokens = item_tokens(CATALOGUE, tokenizer, max_item_tokens=3)
    assert sentences(tokens, tokenizer)[1:] == [
        "title red brush", "title soap soap", "", "title red brand", "brand brush soap",
    ]  # fmt: skip
    assert tokens.cut_share == 2 / 6


def test_columns_in_another_order_say_the_same_in_another_order(tokenizer):
    turned = Attributes(CATALOGUE.columns[::-1], CATALOGUE.values[::-1])
    tokens, other = item_tokens(CATALOGUE, tokenizer), item_tokens(turned, tokenizer)
    assert np.array_equal(tokens.offsets, other.offsets)
    assert sentences(other, tokenizer)[1] == "brand acme title red brush"


def test_many_items_are_put_together_as_few_are(tokenizer, monkeypatch):
    tokens = item_tokens(CATALOGUE, tokenizer, max_item_tokens=4)
    monkeypatch.setattr("recsys.data.tokens._AT_ONCE", 2)
    monkeypatch.setattr("recsys.data.tokenizer._AT_ONCE", 2)
    again = item_tokens(CATALOGUE, tokenizer, max_item_tokens=4)
    for name in ("token_L", "type_L", "offsets"):
        assert np.array_equal(getattr(tokens, name), getattr(again, name))


def test_long_texts_other_alphabets_and_blanks_are_read():
    texts = ["a b" * 50_000, "日本の石鹸", "мыло мыло", "  ", "\u200b", "صابون", "🧼 🧼"]
    catalogue = Attributes(["title"], [texts])
    tokenizer = train_tokenizer(catalogue, vocab_size=300)
    tokens = item_tokens(catalogue, tokenizer, max_attribute_tokens=5)
    # The key "title" is seen once and comes letter by letter; texts of blanks are no texts.
    key = len(tokenizer.encode(["title"])[0])
    lengths = np.diff(tokens.offsets)[1:]
    assert (lengths - key).tolist() == [5, 5, 2, -key, -key, 5, 2]
    assert tokens.cut_share == 1 / 5


def test_rows_of_one_width_hold_the_same_tokens(tokenizer):
    tokens = item_tokens(CATALOGUE, tokenizer)
    token_VW, type_VW = tokens.padded(4, tokenizer.pad)
    assert [said(tokenizer, row) for row in token_VW] == [
        "", "title red brush brand", "title soap soap", "", "title red brand acme",
        "brand brush soap",
    ]  # fmt: skip
    assert type_VW.tolist()[:3] == [[0, 0, 0, 0], [1, 2, 2, 1], [1, 2, 2, 0]]
    assert (token_VW.dtype, type_VW.dtype) == ("int32", "uint8")


def test_a_history_is_cls_and_its_items_newest_first(tokenizer):
    tokens = item_tokens(CATALOGUE, tokenizer)
    found = history_tokens(tokens, np.array([[1, 2, 5], [4, 0, 0]]), 100, tokenizer.cls)
    assert [said(tokenizer, row) for row in found.token_BL] == [
        "[CLS] brand brush soap title soap soap title red brush brand acme",
        "[CLS] title red brand acme",
    ]
    assert found.item_BL.tolist() == [
        [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
        [0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert found.type_BL.tolist() == [
        [0, 1, 2, 2, 1, 2, 2, 1, 2, 2, 1, 2],
        [0, 1, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert found.real_BL.sum(1).tolist() == [12, 5]
    assert found.token_BL.dtype == found.type_BL.dtype == found.item_BL.dtype == "int64"


def test_an_item_without_text_keeps_its_place_and_the_oldest_text_is_cut(tokenizer):
    tokens = item_tokens(CATALOGUE, tokenizer)
    found = history_tokens(tokens, np.array([[1, 2, 3, 5]]), 9, tokenizer.cls)
    assert said(tokenizer, found.token_BL[0]) == (
        "[CLS] brand brush soap title soap soap title red"
    )
    assert found.item_BL[0].tolist() == [0, 1, 1, 1, 3, 3, 3, 4, 4]


def test_a_history_without_any_text_is_cls_alone(tokenizer):
    tokens = item_tokens(CATALOGUE, tokenizer)
    found = history_tokens(tokens, np.array([[3], [0]]), 9, tokenizer.cls)
    assert found.token_BL.tolist() == [[tokenizer.cls]] * 2
    assert found.real_BL.tolist() == [[True]] * 2


def test_padding_on_either_side_and_more_of_it_changes_nothing(tokenizer):
    tokens = item_tokens(CATALOGUE, tokenizer)
    plain = history_tokens(tokens, np.array([[1, 2]]), 9, tokenizer.cls, tokenizer.pad)
    for items in ([[1, 2, 0, 0]], [[0, 0, 1, 2]]):
        padded = history_tokens(tokens, np.array(items), 9, tokenizer.cls, tokenizer.pad)
        for got, wanted in zip(padded, plain, strict=True):
            assert np.array_equal(got, wanted)


def test_random_histories_equal_those_put_together_item_by_item():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 6, 30)
    offsets = np.concatenate([[0, 0], np.cumsum(lengths)])
    tokens = ItemTokens(
        rng.integers(5, 99, offsets[-1]).astype(np.int32),
        rng.integers(1, 3, offsets[-1]).astype(np.uint8),
        offsets, 99, 0.0,
    )  # fmt: skip
    item_BT = rng.integers(1, 31, (20, 7)) * (np.arange(7) < rng.integers(1, 8, (20, 1)))
    found = history_tokens(tokens, item_BT, 16, cls=2)
    for row, items in enumerate(item_BT.tolist()):
        text = [(2, 0, 0)]
        for place, item in enumerate(reversed([item for item in items if item]), start=1):
            own = range(offsets[item], offsets[item + 1])
            text += [(int(tokens.token_L[i]), int(tokens.type_L[i]), place) for i in own]
        text = text[:16]
        text += [(0, 0, 0)] * (found.token_BL.shape[1] - len(text))
        got = zip(*(part[row].tolist() for part in found[:3]), strict=True)
        assert list(got) == text


def test_a_saved_table_is_mapped_as_it_was(tokenizer, tmp_path):
    for catalogue in (CATALOGUE, Attributes(["title"], [[None, None]])):
        tokens = item_tokens(catalogue, tokenizer, max_item_tokens=3)
        tokens.save(tmp_path / "new" / "tokens.arrow")
        again = ItemTokens.load(tmp_path / "new" / "tokens.arrow")
        for name in ("token_L", "type_L", "offsets"):
            got, wanted = getattr(again, name), getattr(tokens, name)
            assert got.dtype == wanted.dtype
            assert np.array_equal(got, wanted)
        assert (again.vocab_size, again.cut_share) == (len(tokenizer), tokens.cut_share)
        assert not again.token_L.flags.writeable
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tokens.arrow"]


def damaged(change: dict, file: Path) -> Path:
    """A table of two items with some of its parts changed."""
    parts = {
        "token_L": np.array([5, 6, 7], np.int32),
        "type_L": np.array([1, 2, 2], np.uint8),
        "offsets": np.array([0, 0, 2, 3]),
        "vocab_size": 8,
        "cut_share": 0.0,
    }
    ItemTokens(**(parts | change)).save(file)
    return file


@pytest.mark.parametrize(
    "change",
    [
        {"token_L": np.array([5, 8, 7], np.int32)},
        {"token_L": np.array([5, -1, 7], np.int32)},
        {"type_L": np.array([1, 3, 2], np.uint8)},
        {"type_L": np.array([1, 0, 2], np.uint8)},
        {"offsets": np.array([0, 1, 2, 3])},
        {"offsets": np.array([0, 0, 3, 2, 3])},
    ],
)
def test_a_table_whose_numbers_lie_outside_is_refused(change, tmp_path):
    ItemTokens.load(damaged({}, tmp_path / "sound"))
    with pytest.raises(InputError, match="its parts do not fit together"):
        ItemTokens.load(damaged(change, tmp_path / "file"))


def test_files_that_are_no_table_of_tokens_are_refused(tmp_path):
    file = tmp_path / "tokens.arrow"
    with pytest.raises(InputError, match="does not exist"):
        ItemTokens.load(file)
    file.write_bytes(b"ARROW1 and no more")
    with pytest.raises(InputError, match="is damaged"):
        ItemTokens.load(file)
    for change in ({"vocab_size": None}, {"cut_share": "much"}):
        with pytest.raises(InputError, match="not a table of tokens of this version"):
            ItemTokens.load(damaged(change, file))
    table = pa.table({"tokens": [[1]]})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="not a table of tokens of this version"):
        ItemTokens.load(file)
