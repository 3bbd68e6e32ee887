"""The catalogue by words, on a few items whose matches can be read off."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from untrained import random_model, write_run

from recsys.errors import InputError
from recsys.retrieval import Retriever
from recsys.retrieval.lookup import FoundItem

ROWS = [
    ("B-01", "Rose Water (100 ml)", 4),
    ("B-02", "rosewater spray", 9),
    ("B-03", "Straße nach CAFÉ", 9),
    ("b-04", None, 1),
    ("B-05", "50% off [a.b] rose", 9),
    ("B-06", "ΟΔΟΣ \\d+ soap", 0),
]


def retriever_of(folder: Path, table: pa.Table) -> Retriever:
    settings = {"dim": 8, "max_len": 4}
    model = random_model("sasrec", settings, table.num_rows)
    return Retriever.load(write_run(folder, model, "sasrec", settings, table))


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    items, titles, counts = zip(*ROWS, strict=True)
    return retriever_of(tmp_path, pa.table({"item": items, "title": titles, "count": counts}))


def ids(retriever: Retriever, search: str = "", **page: int) -> list[Any]:
    return [found.item for found in retriever.find_items(search, **page).items]


def test_everything_comes_most_frequent_first_and_ties_in_catalogue_order(retriever):
    found = retriever.find_items()
    assert found.total == 6
    assert [row.item for row in found.items] == ["B-02", "B-03", "B-05", "B-01", "b-04", "B-06"]
    assert found.items[0] == FoundItem("B-02", "rosewater spray", True, 9)
    assert found.items[4] == FoundItem("b-04", None, True, 1)


def test_many_ties_keep_the_order_of_the_catalogue(tmp_path):
    items = [f"i{n}" for n in range(300)]
    retriever = retriever_of(
        tmp_path, pa.table({"item": items, "count": [n % 3 for n in range(300)]})
    )
    assert ids(retriever, limit=300) == items[2::3] + items[1::3] + items[::3]


@pytest.mark.parametrize(
    ("search", "wanted"),
    [
        ("rose", ["B-02", "B-05", "B-01"]),
        ("WATER rose", ["B-02", "B-01"]),
        ("  rose \t water\u3000ml ", ["B-01"]),
        ("rose rose rose", ["B-02", "B-05", "B-01"]),
        ("rose b-01", ["B-01"]),
        ("B-04", ["b-04"]),
        ("straSSe", []),
        ("STRAßE", ["B-03"]),
        ("café", ["B-03"]),
        ("cafe\u0301", ["B-03"]),
        ("οδος", ["B-06"]),
        ("οδοσ", ["B-06"]),
        ("waterb", []),
        ("never heard of", []),
        ("\u3000 \n", ["B-02", "B-03", "B-05", "B-01", "b-04", "B-06"]),
    ],
)
def test_every_word_occurs_in_title_or_id_in_any_case(retriever, search, wanted):
    assert ids(retriever, search) == wanted
    assert retriever.find_items(search).total == len(wanted)


@pytest.mark.parametrize(
    ("search", "wanted"),
    [
        (".", ["B-05"]),
        ("a.b", ["B-05"]),
        ("[a", ["B-05"]),
        ("(100", ["B-01"]),
        ("r.se", []),
        ("rose|soap", []),
        ("%", ["B-05"]),
        ("_", []),
        ("\\d+", ["B-06"]),
        ("\\", ["B-06"]),
        ("\\Q", []),
        ("(?i)rose", []),
        ("^B", []),
        ("\0", []),
    ],
)
def test_a_word_is_plain_text_and_no_pattern(retriever, search, wanted):
    assert ids(retriever, search) == wanted


def test_pages_follow_each_other_and_know_the_total(retriever):
    every = ids(retriever)
    pages = [ids(retriever, limit=4, offset=offset) for offset in (0, 4, 8)]
    assert pages == [every[:4], every[4:], []]
    assert retriever.find_items(limit=1, offset=5).total == 6
    assert ids(retriever, "rose", limit=1, offset=1) == ["B-05"]


def test_ids_that_are_numbers_are_found_by_their_digits(tmp_path):
    retriever = retriever_of(tmp_path, pa.table({"item": [120, -7, 2**62, 12]}))
    found = retriever.find_items("12")
    assert found.items == [
        FoundItem(120, None, True, None),
        FoundItem(12, None, True, None),
    ]
    assert ids(retriever, "-7") == [-7]
    assert ids(retriever, "4611686018427387904") == [2**62]


def test_titles_that_are_lists_are_searched_in_all_their_parts(tmp_path):
    table = pa.table({"item": ["a", "b"], "title": [["Rose", "water"], None], "count": [1, 2]})
    retriever = retriever_of(tmp_path, table)
    assert ids(retriever, "rose WATER") == ["a"]
    assert ids(retriever, "b") == ["b"]
    assert [found.title for found in retriever.find_items().items] == [None, "Rose, water"]
    assert retriever.titles(["a", "b"]) == ["Rose, water", None]


def test_the_unavailable_is_found_and_says_so(retriever):
    retriever.find_items("rose")
    retriever.set_availability(["B-05"], False)
    rows = retriever.find_items("rose").items
    assert [(row.item, row.available) for row in rows] == [
        ("B-02", True),
        ("B-05", False),
        ("B-01", True),
    ]
    retriever.set_availability(["B-05"], True)
    assert all(row.available for row in retriever.find_items("rose").items)


def test_the_removed_is_neither_found_nor_counted_until_it_is_back(retriever):
    before = retriever.find_items("rose", limit=2)
    assert retriever.remove_items(["B-02"]) == 1
    after = retriever.find_items("rose", limit=2)
    assert ([row.item for row in after.items], after.total) == (["B-05", "B-01"], 2)
    retriever.upsert_items(pd.DataFrame({"item": ["B-02"]}))
    assert retriever.find_items("rose", limit=2) == before


def test_new_titles_are_found_and_old_ones_no_more(retriever):
    assert ids(retriever, "spray") == ["B-02"]
    retriever.upsert_items(pd.DataFrame({"item": ["B-02"], "title": ["lamp"]}))
    assert ids(retriever, "spray") == []
    assert retriever.find_items("LAMP").items == [FoundItem("B-02", "lamp", True, 9)]


def test_a_search_that_makes_no_sense_is_refused(retriever):
    for page, message in (
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"offset": -1}, "offset must be at least 0, got -1"),
    ):
        with pytest.raises(InputError, match=message):
            retriever.find_items("rose", **page)
    for search, message in (
        (" ".join(map(str, range(21))), "at most 20 words and 1,000 characters, got 21 words"),
        ("é" * 1001, "got 1 words and 1,001 characters"),
        ("rose \ud800", "no text"),
        (7, "search is a text, got int 7"),
    ):
        with pytest.raises(InputError, match=message):
            retriever.find_items(search)
    assert ids(retriever, " ".join(map(str, range(20)))) == []


def test_a_search_leaves_pandas_alone(tmp_path):
    retriever_of(tmp_path, pa.table({"item": ["a", "b"], "title": ["x", None], "count": [1, 2]}))
    code = (
        "import sys; from recsys.retrieval import Retriever\n"
        f"found = Retriever.load({str(tmp_path)!r}).find_items('X')\n"
        "assert [row.item for row in found.items] == ['a']\n"
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
