"""Items and histories as key-value sentences in tokens."""

from itertools import pairwise

import numpy as np
import pytest

from recsys.data.text import Attributes
from recsys.data.tokenizer import Tokenizer, train_tokenizer
from recsys.data.tokens import ItemTokens, item_tokens

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
