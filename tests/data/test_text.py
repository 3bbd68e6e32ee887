"""What a catalogue says of its items."""

import pyarrow as pa
import pytest

from recsys.data.text import LONGEST, clean, flat, item_attributes, sentences, without_text
from recsys.errors import InputError


def test_columns_come_in_the_order_in_which_an_item_is_described():
    catalogue = pa.table(
        {
            "item": ["a", "b"],
            "count": [3, 4],
            "zoo": ["z", None],
            "categories": pa.array([["Skin", "Face"], None], pa.list_(pa.string())),
            "colour": ["red", "blue"],
            "title": ["Cream", ""],
        }
    )
    found = item_attributes(catalogue)
    assert found.columns == ["title", "categories", "colour", "zoo"]
    assert found.values == [
        ["Cream", None],
        ["Skin, Face", None],
        ["red", "blue"],
        ["z", None],
    ]
    assert sentences(found) == ["Cream. Skin, Face. red. z", "blue"]


def test_text_is_read_only_where_it_stands_alone():
    alone = pa.table({"item": [1], "text": ["all of it"]})
    assert item_attributes(alone).columns == ["text"]
    beside = alone.append_column("title", pa.array(["it"]))
    assert item_attributes(beside).columns == ["title"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\t\n b ", "a b"),
        ("e\u0301", "é"),
        ("x\x00y\x1bz", "x y z"),
        ("日本語 テキスト", "日本語 テキスト"),
        ("🎧 ok", "🎧 ok"),
    ],
)
def test_texts_are_composed_and_have_single_blanks(text, expected):
    assert clean(text) == expected


def test_what_is_cut_and_what_is_missing_is_said():
    said: list[str] = []
    catalogue = pa.table({"item": [1, 2, 3], "title": ["x" * 100_000, None, "  "]})
    found = item_attributes(catalogue, said.append)
    assert found.values == [["x" * LONGEST, None, None]]
    assert said == [
        f"1 texts were cut at {LONGEST:,} characters",
        "2 of 3 items have no title",
        "2 of 3 items have no text at all",
    ]


def test_an_item_has_text_in_any_column_or_in_none():
    lists = pa.array([[], ["x"], None, None], pa.list_(pa.string()))
    catalogue = pa.table({"item": ["a", "b", "c", "d"], "title": [None, None, "", "t"]})
    assert without_text(catalogue) == 3
    assert without_text(catalogue.append_column("categories", lists)) == 2
    assert without_text(catalogue.select(["item"])) == 4


@pytest.mark.parametrize(
    "catalogue",
    [
        pa.table({"item": ["a"], "count": [1]}),
        pa.table({"item": ["a"], "count": [1], "price": [1.5]}),
        pa.table({"item": ["a"], "title": pa.array([None], pa.string())}),
    ],
)
def test_a_catalogue_without_any_text_is_refused(catalogue):
    with pytest.raises(InputError, match="recsys data prepare … --items FILE"):
        item_attributes(catalogue)


def test_lists_in_lists_are_made_flat_however_deep():
    assert list(flat(["a", ["b", [], ["c"]], {"d": 1}])) == ["a", "b", "c", {"d": 1}]
    assert list(flat("a")) == ["a"]
    deep: object = "in"
    for _ in range(100_000):
        deep = [deep, "out"]
    assert list(flat(deep)) == ["in"] + ["out"] * 100_000
