"""Filters: what passes, as Python itself evaluates it row by row, and what is refused."""

import datetime as dt
import logging
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.retrieval.filters import DEEPEST, passing

NAN = float("nan")
UTC = dt.UTC
ROWS: list[dict[str, Any]] = [
    {"brand": "a", "price": 5.0, "n": 1, "sale": True, "day": dt.date(2024, 1, 1), "tags": ["x"]},
    {"brand": "B", "price": 9.5, "n": -3, "sale": False, "day": None, "tags": ["x", "y", "x"]},
    {"brand": "it's", "price": None, "n": 2**53 + 1, "sale": None, "tags": []},
    {"brand": None, "price": -0.5, "n": None, "sale": True, "day": dt.date(1969, 12, 31)},
    {"brand": "", "price": NAN, "n": 0, "sale": False, "tags": [None, "y"]},
    {"brand": "a_b%c\\", "price": 20.0, "n": 7, "day": dt.date(2024, 2, 29), "tags": [None]},
    {"brand": "naïve\nab", "price": 1e300, "n": 2, "sale": True, "tags": ["y", "z"]},
    {"brand": "ab", "price": 0.1, "n": 5, "sale": False, "day": dt.date(2024, 1, 1), "tags": None},
]
TYPES = {
    "brand": pa.string(),
    "price": pa.float64(),
    "n": pa.int64(),
    "sale": pa.bool_(),
    "day": pa.date32(),
    "tags": pa.list_(pa.string()),
}
TABLE = pa.table(
    {
        name: pa.chunked_array(  # in two unequal pieces, as files are read
            [pa.array([row.get(name) for row in rows], kind) for rows in (ROWS[:3], ROWS[3:])]
        )
        for name, kind in TYPES.items()
    }
)


def found(expression: str, table: pa.Table = TABLE) -> list[int]:
    """Item numbers that pass."""
    passes = passing(expression, table)
    assert (passes.dtype, passes.shape) == (np.bool_, (table.num_rows + 1,))
    return np.flatnonzero(passes).tolist()


def one_column(values: list[Any], kind: pa.DataType) -> pa.Table:
    return pa.table({"x": pa.array(values, kind)})


@pytest.mark.parametrize(
    ("expression", "items"),
    [
        ("brand = 'a' and price < 20", [1]),
        ("brand in ('a', 'ab')", [1, 8]),
        ("brand IN ('it''s')", [3]),
        ("price between 5 and 10", [1, 2]),
        ("price not between 5 and 10", [4, 6, 7, 8]),
        ("n between price and 5", [8]),
        ("not (brand is null)", [1, 2, 3, 5, 6, 7, 8]),
        ("brand IS NOT NULL AND sale", [1, 7]),
        ("brand is null or sale is null", [3, 4, 6]),
        ("price <> 5", [2, 4, 6, 7, 8]),
        ("price != 5", [2, 4, 6, 7, 8]),
        ("price >= 9.5", [2, 6, 7]),
        ("20 > price", [1, 2, 4, 8]),
        ("price is null", [3, 5]),
        ("n = -3", [2]),
        ("sale = true", [1, 4, 7]),
        ("not sale", [2, 5, 8]),
        ("sale is not true", [2, 3, 5, 6, 8]),
        ("(price < 6) is true", [1, 4, 8]),
        ("brand like '%b'", [7, 8]),
        ("brand not like '%b'", [1, 2, 3, 5, 6]),
        ("brand ilike 'b'", [2]),
        ("n < price", [1, 2, 6, 7]),
        ("sale and brand = 'a' or n = 7", [1, 6]),
        ("sale and (brand = 'a' or n = 2)", [1, 7]),
        ("day = '2024-01-01'", [1, 8]),
        ("day < date '2000-01-01'", [4]),
        ("day > '2024-01-01 00:00:01'", [6]),
        ("day in ('2024-01-01', '1969-12-31')", [1, 4, 8]),
        ("tags = 'x'", [1, 2]),
        ("'y' = tags", [2, 5, 7]),
        ("tags in ('x', 'z')", [1, 2, 7]),
        ("tags is null", [4, 8]),
        ("true", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("false or null", []),
        ("(\n  price = 5 -- five\n)", [1]),
    ],
)
def test_known_expressions_find_known_items(expression, items):
    assert found(expression) == items


def test_null_compares_to_unknown_also_under_not():
    assert found("brand = null or brand <> null or not (brand = null)") == []
    assert found("not (price < 5)") == [1, 2, 6, 7]
    assert found("n in (1, null)") == [1]
    assert found("n not in (1, null)") == []
    assert found("n not in (1)") == [2, 3, 5, 6, 7, 8]
    assert found("price between null and 0") == []
    assert found("not (price between null and 0)") == [1, 2, 6, 7, 8]


def test_a_list_differs_when_no_member_equals_and_none_is_unknown():
    assert found("tags <> 'x'") == [3, 7]
    assert found("tags not in ('x', 'z')") == [3]
    assert found("not tags = 'x'") == [3, 7]


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_list(pa.large_string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.list_(pa.string_view()),
    ],
)
def test_every_type_of_lists_and_a_slice_of_it_are_read(kind):
    table = one_column([["b"], ["a"], None, ["a", "b"], []], kind)
    assert found("x = 'a'", table) == [2, 4]
    assert found("x = 'a'", table.slice(1)) == [1, 3]
    assert found("x in ('b', 'c')", table.slice(1, 3)) == [3]


def test_lists_of_one_size_and_of_numbers_are_read():
    table = one_column([[1, 2], None, [3, 1], [None, 4]], pa.list_(pa.int8(), 2))
    assert found("x = 1", table) == [1, 3]
    assert found("x in (1.5, 300, 2)", table) == [1]
    assert found("x <> 3", table) == [1]


def test_members_hidden_below_a_null_list_do_not_count():
    lists = pa.ListArray.from_arrays(
        pa.array([0, 2, 3]), pa.array(["a", "b", "c"]), mask=pa.array([True, False])
    )
    assert found("x = 'a'", pa.table({"x": lists})) == []
    assert found("x = 'c'", pa.table({"x": lists})) == [2]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_type_of_text_is_read(kind):
    table = one_column(["a", None, "b", "ab"], kind)
    assert found("x = 'a'", table) == [1]
    assert found("x > 'a'", table) == [3, 4]
    assert found("x in ('b', 'a')", table) == [1, 3]
    assert found("x like 'a%'", table) == [1, 4]
    assert found("x is null", table) == [2]
    both = table.append_column("y", pa.array(["a", "b", "c", "ab"]))
    assert found("x = y", both) == [1, 4]


NUMBERS = {
    pa.int8(): [-128, -1, 0, 1, 127],
    pa.uint8(): [0, 1, 2, 254, 255],
    pa.int64(): [-(2**63), -(2**53) - 1, 0, 2**53 + 1, 2**63 - 1],
    pa.uint64(): [0, 1, 2**53 + 1, 2**63, 2**64 - 1],
    pa.decimal128(5, 2): [Decimal("-999.99"), Decimal("0.10"), Decimal("0.11"), Decimal("999.99")],
    pa.decimal64(5, 2): [Decimal("-999.99"), Decimal("0.11")],
    pa.decimal256(60, 2): [Decimal("0.10"), Decimal("1" + "0" * 50 + ".01")],
    pa.float64(): [-1e300, -0.5, 0.0, 0.1, 2.0**53, 1e300],
}
LITERALS = [
    "0", "-1", "1", "1.5", "-1.5", "0.1", ".10", "0.105", "5.", "127", "128", "-129", "255", "1e2",
    "9007199254740993", "9007199254740992.5", "9223372036854775807", "9223372036854775808",
    "18446744073709551615", "18446744073709551616", "-9223372036854775809", "1e300", "-1e300",
    "999.99", "999.994", "1000", "1e-300", "0.0", "1" + "0" * 50 + ".01",
]  # fmt: skip
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_numbers_compare_exactly_whatever_the_literal(kind):
    values = NUMBERS[kind]
    table = one_column([*values, None], kind)
    for text in LITERALS:
        literal = float(text) if kind == pa.float64() else Decimal(text)
        for sign, holds in OPERATORS.items():
            wanted = [i for i, value in enumerate(values, 1) if holds(value, literal)]
            assert found(f"x {sign} {text}", table) == wanted, (sign, text)
        equal = [i for i, value in enumerate(values, 1) if value == literal]
        assert found(f"x in ({text}, 1.2345)", table) == equal, text


def test_a_column_of_narrow_floats_compares_at_its_own_width():
    for kind in (pa.float32(), pa.float16()):
        table = one_column([np.float16(0.5), np.float16(2), None, np.float16(NAN)], kind)
        assert found("x = 0.5", table) == [1]
        assert found("x > 0.5 or x is null", table) == [2, 3, 4]
    assert found("x = 0.1", one_column([0.1], pa.float32())) == [1]


def test_negative_zero_is_zero():
    table = one_column([0.0, -0.0, 1.0, None], pa.float64())
    for expression in ("x = 0", "x in (0)", "x in (-0.0, 5)", "x = -0"):
        assert found(expression, table) == [1, 2]


def test_columns_of_different_numbers_compare():
    table = pa.table(
        {
            "a": pa.array([1, 2**63, None, 4], pa.uint64()),
            "b": pa.array([2, -1, 3, 4], pa.int64()),
            "c": pa.array([1.5, 2e19, NAN, 4.0]),
        }
    )
    assert found("a < b", table) == [1]
    assert found("a = b", table) == [4]
    assert found("b <> c", table) == [1, 2]
    assert found("a < c", table) == [1, 2]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_times_compare_exactly_in_every_unit(unit, zone):
    moments = [dt.datetime(2024, 5, 31, 12), dt.datetime(1960, 1, 1), None]
    table = one_column(
        [m and m.replace(tzinfo=UTC if zone else None) for m in moments], pa.timestamp(unit, zone)
    )
    assert found("x = '2024-05-31 12:00'", table) == [1]
    assert found("x < timestamp '2024-05-31 12:00:00.000001'", table) == [1, 2]
    assert found("x >= '2024-05-31T11:59:59.9'", table) == [1]
    assert found("x <> '1960-01-01'", table) == [1]
    assert found("x < '9999-12-31'", table) == [1, 2]
    assert found("x in ('1960-01-01', '2024-05-31 12:00:00.5')", table) == [2]
    if zone:
        assert found("x = '2024-05-31 14:00+02:00'", table) == [1]
    else:
        with pytest.raises(InputError, match="no time zone"):
            passing("x = '2024-05-31 14:00+02:00'", table)


def test_dates_in_milliseconds_and_columns_of_dates_compare():
    table = pa.table({"a": pa.array([dt.date(2024, 1, 2), None], pa.date64())})
    assert found("a > '2024-01-01'", table) == [1]
    table = pa.table({"a": TABLE["day"], "b": TABLE["day"].fill_null(dt.date(2020, 1, 1))})
    assert found("a = b", table) == [1, 4, 6, 8]


def test_a_column_of_nothing_is_unknown():
    table = one_column([None, None], pa.null())
    assert found("x = 1 or x <> 'a' or x in (1) or x like 'a' or x = x", table) == []
    assert found("x is null", table) == [1, 2]


def test_a_column_of_any_type_takes_is_null():
    table = one_column([{"a": 1}, None], pa.struct({"a": pa.int64()}))
    assert found("x is not null", table) == [1]


@pytest.mark.parametrize("name", ["odd name", 'a"b', "a.b", "Größe", "select", "if", "and", "a'b"])
def test_a_quoted_name_reads_any_column(name):
    table = pa.table({name: pa.array([1, 2])})
    quoted = '"' + name.replace('"', '""') + '"'
    assert found(f"{quoted} = 2", table) == [2]
    assert found(f"not {quoted} = 2 or {quoted} is null", table) == [1]


@pytest.mark.parametrize(
    "name", ["item", "title", "count", "date", "time", "type", "category", "key"]
)
def test_usual_names_need_no_quotes(name):
    assert found(f"{name} = 2 and not {name} in (1)", pa.table({name: [1, 2]})) == [2]


def test_names_are_exact_and_words_are_in_any_case():
    table = pa.table({"Price": [1, 2], "price": [2, 1]})
    assert found("NoT Price = 1 aNd price BETWEEN 1 AnD 1 Or FALSE", table) == [2]
    with pytest.raises(InputError, match=r"no column 'PRICE'.*\(columns: Price, price\)"):
        passing("PRICE = 1", table)


def test_an_empty_catalogue_has_only_padding():
    for expression in ("brand = 'a'", "true", "tags = 'x'", "price in (1)", "not sale"):
        assert passing(expression, TABLE.slice(0, 0)).tolist() == [False]


def test_the_longest_expression_is_read_and_soon():
    expression = " or ".join(["n = 1"] * 1100)
    assert len(expression) <= 10_000
    assert found(expression) == [1]
    values = ", ".join(str(value) for value in range(2, 1800))
    assert found(f"n in ({values})") == [6, 7, 8]


def test_levels_up_to_the_limit_are_read():
    assert found("(" * DEEPEST + "n = 1" + ")" * DEEPEST) == [1]
    half = DEEPEST // 2
    assert found("not (" * 2 * (half // 2) + "n = 1" + ")" * 2 * (half // 2)) == [1]
    assert found(" and ".join(["not (n <> 1)"] * 100)) == [1]


# A condition as SQL and as a function of a row, which gives True, False or None for unknown.
Truth = bool | None
Pair = tuple[str, Callable[[dict[str, Any]], Truth]]
TEXTS = ["a", "B", "it's", "", "ab", "zz", "x", "y"]


def value_of(row: dict[str, Any], name: str) -> Any:
    value = row.get(name)
    return None if isinstance(value, float) and value != value else value


def either(truths: list[Truth]) -> Truth:
    return True if True in truths else None if None in truths else False


def opposite(truth: Truth) -> Truth:
    return None if truth is None else not truth


def written(value: Any) -> str:
    if isinstance(value, str | dt.date):
        return "'" + str(value).replace("'", "''") + "'"
    return "null" if value is None else str(value).lower()


def literals(name: str) -> st.SearchStrategy[Any]:
    some = {
        "brand": st.sampled_from(TEXTS),
        "tags": st.sampled_from(TEXTS),
        "price": st.sampled_from([5, 9.5, 0.1, -0.5, 0, 20, 1e300]),
        "n": st.sampled_from([1, -3, 2**53 + 1, 2**53, 0.5, 7, 5, 2]),
        "sale": st.booleans(),
        "day": st.sampled_from([dt.date(2024, 1, 1), dt.date(1969, 12, 31), dt.date(2025, 1, 1)]),
    }
    return st.none() | some[name] if name != "sale" else some[name]


def compared(value: Any, sign: str, literal: Any) -> Truth:
    if value is None or literal is None:
        return None
    return OPERATORS[sign](value, literal)


def is_among(value: Any, wanted: list[Any]) -> Truth:
    return either([compared(value, "=", one) for one in wanted])


def of_members(value: Any, holds: Callable[[Any], Truth]) -> Truth:
    return None if value is None else either([holds(member) for member in value])


@st.composite
def leaves(draw: st.DrawFn) -> Pair:
    name = draw(st.sampled_from(list(TYPES)))
    match draw(st.sampled_from(["compare", "mirror", "in", "not in", "between", "null", "like"])):
        case "compare":
            sign = draw(st.sampled_from(["=", "<>"] if name == "tags" else list(OPERATORS)))
            one = draw(literals(name))
            if name == "tags":
                yes = sign == "="
                return f"tags {sign} {written(one)}", lambda row: (
                    lambda t: t if yes else opposite(t)
                )(of_members(row.get("tags"), lambda member: compared(member, "=", one)))
            return (
                f"{name} {sign} {written(one)}",
                lambda row: compared(value_of(row, name), sign, one),
            )
        case "mirror" if name != "tags":
            sign, one = draw(st.sampled_from(list(OPERATORS))), draw(literals(name))
            return (
                f"{written(one)} {sign} {name}",
                lambda row: (
                    None
                    if value_of(row, name) is None or one is None
                    else OPERATORS[sign](one, value_of(row, name))
                ),
            )
        case "in" | "not in" as word:
            wanted = draw(st.lists(literals(name), min_size=1, max_size=3))

            def holds(row: dict[str, Any]) -> Truth:
                value = value_of(row, name)
                if name == "tags":
                    truth = of_members(value, lambda member: is_among(member, wanted))
                else:
                    truth = is_among(value, wanted)
                return truth if word == "in" else opposite(truth)

            return f"{name} {word} ({', '.join(map(written, wanted))})", holds
        case "between" if name != "tags":
            low, high = draw(literals(name)), draw(literals(name))
            return (
                f"{name} between {written(low)} and {written(high)}",
                lambda row: opposite(
                    either(
                        [
                            opposite(compared(value_of(row, name), ">=", low)),
                            opposite(compared(value_of(row, name), "<=", high)),
                        ]
                    )
                ),
            )
        case "like":
            pattern = draw(st.text("ab%_'", max_size=5))
            shape = "".join({"%": ".*", "_": "."}.get(c, re.escape(c)) for c in pattern)
            return (
                f"brand like {written(pattern)}",
                lambda row: (
                    None
                    if row["brand"] is None
                    else bool(re.fullmatch(shape, row["brand"], re.DOTALL))
                ),
            )
    return f"{name} is null", lambda row: value_of(row, name) is None


def joined(parts: list[Pair], word: str) -> Pair:
    def holds(row: dict[str, Any]) -> Truth:
        truths = [part[1](row) for part in parts]
        if word == "or":
            return either(truths)
        return opposite(either([opposite(truth) for truth in truths]))

    return f" {word} ".join(f"({text})" for text, _ in parts), holds


def negated(part: Pair) -> Pair:
    return f"not ({part[0]})", lambda row: opposite(part[1](row))


CONDITIONS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.builds(negated, inner),
        st.builds(joined, st.lists(inner, min_size=2, max_size=3), st.sampled_from(["and", "or"])),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(CONDITIONS)
def test_any_condition_passes_what_python_says(condition):
    text, holds = condition
    assert found(text) == [i for i, row in enumerate(ROWS, 1) if holds(row) is True], text


@pytest.mark.parametrize(
    ("pattern", "text", "holds"),
    [
        ("50\\%", "50%", True),
        ("50\\%", "50x", False),
        ("a\\_c%", "a_cd", True),
        ("a\\_c%", "abcd", False),
        ("\\.%", ".x", True),
        ("\\\\a%", "\\ab", True),
        ("\\\\a%", "\\\\ab", False),
        ("a\\%\nb", "a%\nb", True),
        ("a\\\nb", "a\nb", True),
    ],
)
def test_a_backslash_takes_the_next_character_literally(pattern, text, holds):
    table = one_column([text], pa.string())
    assert found(f"x like '{pattern}'", table) == ([1] if holds else [])
    assert found(f"x ilike '{pattern.upper()}'", table) == ([1] if holds else [])
    assert found(f"x not like '{pattern}'", table) == ([] if holds else [1])


@settings(max_examples=400, deadline=None)
@given(
    pattern=st.text("ab%_\\é\n. (0", max_size=6),
    texts=st.lists(st.text("ab%_\\é\n. (0", max_size=5), min_size=1, max_size=5),
)
def test_like_means_the_same_as_a_regular_expression(pattern, texts):
    parts = re.findall(r"\\?.|\\$", pattern, re.DOTALL)
    if parts and parts[-1] == "\\":
        return
    shape = "".join({"%": ".*", "_": "."}.get(part) or re.escape(part[-1]) for part in parts)
    wanted = [i for i, text in enumerate(texts, 1) if re.fullmatch(shape, text, re.DOTALL)]
    assert found(f"x like '{pattern}'", one_column(texts, pa.string())) == wanted


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "the filter is empty"),
        (" \n-- nothing\n", "the filter is empty"),
        ("pricce < 3", r"no column 'pricce' .*did you mean 'price'\? \(columns: brand, price, n"),
        ('brand = "zzz"', "no column 'zzz' .*a text stands in single quotes"),
        ("brand.x = 1", r"brand\.x is more than a filter may hold"),
        ("* = 1", "may hold"),
        ("lower(brand) = 'a'", r"LOWER\(brand\) is more than"),
        ("foo(brand)", r"FOO\(brand\) is more than"),
        ("price + 1 = 2", r"price \+ 1 is more than"),
        ("-price = 2", "-price is more than"),
        ("brand || 'a' = 'b'", "is more than"),
        ("brand::int = 1", "is more than"),
        ("cast(brand as int) = 1", "is more than"),
        ("cast('1' as int) = n", "is more than"),
        ("try_cast('2024-01-01' as date) = day", "is more than"),
        ("case when sale then true end", "CASE WHEN .* is more than"),
        ("n in (select 1)", "without 'select'"),
        ("exists (select 1)", "without 'select'"),
        ("n in (with x as (alter table y z) select 1)", "without 'with'"),
        ("select * from items", "without 'select'"),
        ("true; drop table items", "without ';'"),
        ("true or (describe truncate x)", "without 'describe'"),
        ("if = 1", "without 'if'.*stands in double quotes"),
        ("n in brand", "is more than"),
        ("n in ()", "takes a column and a list of literals"),
        ("n in (1, price)", "takes a column and a list of literals"),
        ("1 in (1, 2)", "takes a column and a list of literals"),
        ("n between symmetric 3 and 1", "is more than"),
        ("brand like 'a!%' escape '!'", "is more than"),
        ("brand like any ('a')", "is more than"),
        ("brand ~ 'a'", "is more than"),
        ("brand similar to 'a'", "is more than"),
        ("n is distinct from 1", "without 'from'"),
        ("n = ?", "is more than"),
        ("n = $x", "is more than"),
        ("n = [1]", "is more than"),
        ("brand = e'a'", "is more than"),
        ("1 = 1", "1 = 1 .*compares no column"),
        ("n is 5", "is more|is null"),
        ("brand is price", "is null"),
        ("'a'", "'a' is more than"),
        ("5", "5 is more than"),
        ("brand", "brand in the filter is string, which is no condition"),
        ("not price", "price in the filter is double, which is no condition"),
        ("tags", "no condition"),
        ("sale and brand", "brand in the filter is string"),
        ("brand < 5", "brand < 5 .*string does not compare with a number"),
        ("price = 'cheap'", "price = 'cheap' .*double does not compare with a text"),
        ("price in (1, 'cheap')", "IN .*does not compare with a text"),
        ("price = true", "does not compare with a boolean"),
        ("sale = 1", "bool does not compare with a number"),
        ("brand = date '2024-01-01'", "string does not compare with a time"),
        ("brand = price", "string does not compare with double"),
        ("tags = brand", "lists compare with literals only"),
        ("tags < 'x'", "lists compare by = <> and in"),
        ("tags between 'a' and 'b'", "lists compare by"),
        ("tags = 5", "does not compare with a number"),
        ("tags like 'x'", "`like` is for text"),
        ("price like '5'", "`like` is for text"),
        ("brand like 5", "pattern of `like` is a text"),
        ("brand like brand", "takes a column and a literal text"),
        ("brand like 'a\\'", "lone backslash"),
        ("day = 'soon'", "'soon' is no date or time"),
        ("day = 5", "does not compare with a number"),
        ("day = date '2024-02-30'", "is no date or time"),
        ("price < 1e", "1e in the filter is no number"),
        ("price < 1e999999999", "beyond the range"),
        ("price < 1e-999999999", "beyond the range"),
        ("price < 1e99999999999999999999999", "no number|beyond the range"),
        ("price < " + "9" * 5000, "beyond the range"),
        ("brand = 'a", "leaves a quote open"),
        ('"brand = 1', "leaves a quote open"),
        ("brand = 'a\nb", "leaves a quote open: brand = 'a b"),
        ('"' + "a\n" * 3000 + '" = 1', "no column 'a a a"),
        ("day = '" + "a\n" * 3000 + "'", "is no date or time"),
        ("price <", "cannot be read"),
        ("price = 1 and", "cannot be read at 'and'"),
        ("price = 1 price", "cannot be read at 'price'"),
        ("price = 1)", r"cannot be read at '\)'"),
        ("(price = 1", "cannot be read"),
        ("price = 1 as x", "cannot be read at 'as'"),
        ("brand = 'a' & 'b'", "is more than"),
        ("brand = '\ud800'", "half a character"),
        ("price < 1 or " * 900 + "true", "at most 10,000 characters, got 11,704"),
        ("(" * 26 + "true" + ")" * 26, "nests too deep; at most 25"),
        ("not " * 26 + "true", "nests too deep"),
        ("(" * 9000, "nests too deep"),
        ("[" * 9000, "nests too deep"),
        ("not (" * 1900, "nests too deep"),
        ("- " * 4000 + "1 = n", "nests too deep|is more than"),
        ("case when " * 900, "nests too deep|cannot be read"),
        ("n = " * 2400 + "n", "nests too deep|is more than"),
    ],
)
def test_what_is_no_filter_is_refused_with_its_part(expression, says):
    with pytest.raises(InputError, match=says) as refused:
        passing(expression, TABLE)
    message = str(refused.value)
    assert len(message) < 400
    assert "\n" not in message


def test_a_type_that_does_not_compare_takes_is_null_only():
    table = one_column([{"a": 1}], pa.struct({"a": pa.int64()}))
    with pytest.raises(InputError, match=r"x in the filter: a column of struct.* `is null` only"):
        passing("x = 1", table)
    with pytest.raises(InputError, match="`is null` only"):
        passing("x = 1", one_column([[[1]]], pa.list_(pa.list_(pa.int64()))))


def test_a_long_pattern_is_matched_or_refused():
    assert found("brand like '" + "%a" * 4900 + "'") == []
    assert found("brand ilike '" + "_" * 9000 + "%'") == []


@pytest.mark.parametrize(
    "expression", ["if = 1", "n = 1; if = 2", "(describe force x)", "vacuum x"]
)
def test_the_parser_logs_and_prints_nothing(expression, caplog, capfd):
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError):
        passing(expression, TABLE)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_the_catalogue_is_not_changed():
    before = TABLE.to_pydict().__repr__()
    passing("price < 5 and tags = 'x' and brand like 'a%'", TABLE)
    assert TABLE.to_pydict().__repr__() == before
