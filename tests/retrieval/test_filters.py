"""Filters against the same conditions in plain Python, and what is no filter."""

import logging

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.retrieval.filters import passing

ROWS = [
    {"kind": "lamp", "price": 5.0, "stock": 3, "new": True, "tags": ["a", "b"], "odd name": "x"},
    {"kind": "soap", "price": 20.0, "stock": 0, "new": False, "tags": [], "odd name": None},
    {"kind": None, "price": None, "stock": None, "new": None, "tags": None, "odd name": "y"},
    {"kind": "it's", "price": -1.5, "stock": 7, "new": True, "tags": ["c"], "odd name": "x"},
    {"kind": "red lamp", "price": 10.0, "stock": 1, "new": False, "tags": ["b"], "odd name": "z"},
]
TABLE = pa.Table.from_pylist(ROWS)


def found(expression):
    passes = passing(expression, TABLE)
    assert passes.shape == (len(ROWS) + 1,)
    assert not passes[0]
    return [place for place in range(len(ROWS)) if passes[place + 1]]


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("kind = 'lamp'", [0]),
        ("kind = 'it''s'", [3]),
        ("kind <> 'lamp'", [1, 3, 4]),
        ("kind != 'lamp' AND price >= 10", [1, 4]),
        ("price < 10", [0, 3]),
        ("10 > price", [0, 3]),
        ("price = -1.5", [3]),
        ("price between 5 and 10", [0, 4]),
        ("price not between 5 and 10", [1, 3]),
        ("stock in (0, 7)", [1, 3]),
        ("kind in ('lamp', 'soap')", [0, 1]),
        ("kind not in ('lamp', 'soap')", [3, 4]),
        ("kind like '%lamp'", [0, 4]),
        ("kind like 'l_mp'", [0]),
        ("kind not like '%lamp'", [1, 3]),
        ("kind is null", [2]),
        ("price is not null and not (price < 10)", [1, 4]),
        ("new", [0, 3]),
        ("not new", [1, 4]),
        ("new = true", [0, 3]),
        ("tags = 'b'", [0, 4]),
        ("tags in ('c', 'a')", [0, 3]),
        ("\"odd name\" = 'x' or stock = 0", [0, 1, 3]),
        ("kind = 'lamp' or price is null", [0, 2]),
        ("stock < price", [0, 1, 4]),
        ("(kind = 'lamp')", [0]),
    ],
)
def test_a_filter_passes_what_the_condition_holds_for(expression, rows):
    assert found(expression) == rows


NUMBERS = st.integers(-2, 21)


@given(
    st.sampled_from(["<", "<=", "=", "<>", ">", ">="]), NUMBERS, st.sampled_from(["price", "stock"])
)
def test_comparisons_are_those_of_python(sign, number, column):
    holds = {
        "<": lambda x: x < number,
        "<=": lambda x: x <= number,
        "=": lambda x: x == number,
        "<>": lambda x: x != number,
        ">": lambda x: x > number,
        ">=": lambda x: x >= number,
    }[sign]
    wanted = [n for n, row in enumerate(ROWS) if row[column] is not None and holds(row[column])]
    assert found(f"{column} {sign} {number}") == wanted


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("price <", "cannot be read"),
        ("kind = 'lamp", "cannot be read"),
        ("prize < 3", r"no column 'prize'.*did you mean 'price'.*columns: 'kind'"),
        ("price < 'ten'", "'price' is double: it does not compare with 'ten'"),
        ("kind = 3", "'kind' is string: it does not compare with 3"),
        ("kind in ('lamp', 3)", "does not compare"),
        ("tags < 'b'", "holds lists"),
        ("kind", "no condition"),
        ("upper(kind) = 'LAMP'", "name of a column"),
        ("price < (select 1)", "a text or a number"),
        ("price < 3; drop table items", "cannot be read|more than a condition"),
        ("price < 3 limit 1", "more than a condition"),
        ("price < 3 union select 2", "more than a condition"),
        ("1 = 1", "name of a column"),
        ("price + 1 < 3", "name of a column"),
        ("t.price < 3", "name of a column"),
        ("(" * 60 + "new" + ")" * 60, "nests too deep"),
        ("not " * 60 + "new", "nests too deep"),
        ("price < 3 or " * 2000 + "new", "characters"),
        ("price < 3 -- rest\n limit 1", "more than a condition"),
    ],
)
def test_what_is_no_filter_is_refused_and_named(expression, message, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match=message):
        found(expression)
    assert not caplog.records


def test_a_long_chain_is_a_filter():
    assert found("price < 3 or " * 700 + "new") == [0, 3]
