"""Columns of a catalogue against values, as SQL compares them: null is unknown, numbers are exact.

Errors say only what does not fit; the caller says where.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError

Kind = Literal["text", "number", "boolean", "time", "null"]
Value: TypeAlias = str | Fraction | bool | datetime | None
"""What a literal stands for; None is null."""

COMPARE: dict[str, Callable[..., Any]] = {
    "eq": pc.equal,
    "neq": pc.not_equal,
    "lt": pc.less,
    "lte": pc.less_equal,
    "gt": pc.greater,
    "gte": pc.greater_equal,
}
TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""A second in the units of Arrow's timestamps."""
DAY = 86_400
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def unknown() -> Any:
    """Neither true nor false. Not a constant: pyarrow's first scalar imports pandas."""
    return pa.scalar(None, pa.bool_())


@dataclass(frozen=True)
class Column:
    """One column, in the few kinds that are told apart."""

    type: pa.DataType
    """As the catalogue has it."""
    kind: Kind
    values: Any
    """Arrow values [V], or the members of all lists; times as integers since 1970."""
    lists: Any = None
    """Arrow lists [V] that the values are the members of, None where each item has one value."""
    ticks: Fraction = Fraction(0)
    """A second in the integers of a column of times."""
    zone: str | None = None
    """Time zone of a column of times; None where it has none."""


def column(values: pa.ChunkedArray) -> Column:
    """A column of the catalogue, ready to be compared. InputError where its type cannot be."""
    given, lists = values.type, None
    if (
        pa.types.is_list(given)
        or pa.types.is_large_list(given)
        or pa.types.is_fixed_size_list(given)
    ):
        lists = values.combine_chunks()
        values = lists.flatten()
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    inner = values.type
    if pa.types.is_string(inner) or pa.types.is_large_string(inner):
        return Column(given, "text", values, lists)
    if pa.types.is_string_view(inner):
        return Column(given, "text", values.cast(pa.large_string()), lists)
    if pa.types.is_floating(inner):
        return Column(given, "number", _without_nan(values), lists)
    if pa.types.is_decimal(inner) and inner.bit_width < 128:  # which `in` has no kernel for
        values = values.cast(pa.decimal128(inner.precision, inner.scale))
    if pa.types.is_integer(inner) or pa.types.is_decimal(inner):
        return Column(given, "number", values, lists)
    if pa.types.is_boolean(inner):
        return Column(given, "boolean", values, lists)
    if pa.types.is_timestamp(inner):
        ticks = Fraction(TICKS[inner.unit])
        return Column(given, "time", values.cast(pa.int64()), lists, ticks, inner.tz)
    if pa.types.is_date32(inner):
        return Column(given, "time", values.cast(pa.int32()), lists, Fraction(1, DAY))
    if pa.types.is_date64(inner):
        return Column(given, "time", values.cast(pa.int64()), lists, Fraction(TICKS["ms"]))
    if pa.types.is_null(inner):
        return Column(given, "null", values, lists)
    raise InputError(f"a column of {given} takes `is null` only")


def is_null(values: pa.ChunkedArray) -> Any:
    """Arrow booleans [V]: where a column of any type has no value."""
    return pc.is_null(values, nan_is_null=pa.types.is_floating(values.type))


def with_value(op: str, of: Column, value: Value) -> Any:
    """Arrow booleans [V] of `column op value`, null where unknown; op is a key of COMPARE."""
    if of.lists is None:
        return _values_with_value(op, of, value)
    if op not in ("eq", "neq"):
        raise InputError("lists compare by = <> and in")
    holds = _any_member(of.lists, _values_with_value("eq", of, value))
    return holds if op == "eq" else pc.invert(holds)


def among(of: Column, values: list[Value]) -> Any:
    """Arrow booleans [V] of `column in (values)`, null where unknown."""
    fitting = [_as_kind(value, of) for value in values]
    if of.kind == "null":
        found = _all_unknown(of.values)
    else:
        kind = of.values.type
        wanted = [scalar.as_py() for value in fitting for scalar in _scalars(value, kind)]
        if pa.types.is_floating(kind) and 0 in wanted:
            wanted.append(-0.0)  # equal to 0, but another value to is_in
        found = pc.is_in(of.values, value_set=pa.array(wanted, kind))
        found = pc.if_else(pc.is_valid(of.values), found, unknown())
        if None in fitting:
            found = pc.or_kleene(found, unknown())
    return found if of.lists is None else _any_member(of.lists, found)


def with_column(op: str, left: Column, right: Column) -> Any:
    """Arrow booleans [V] of `left op right`, null where unknown."""
    if left.lists is not None or right.lists is not None:
        raise InputError("lists compare with literals only")
    if "null" in (left.kind, right.kind):
        return _all_unknown(left.values)
    if left.kind != right.kind or (left.kind == "time" and left.type != right.type):
        raise InputError(f"{left.type} does not compare with {right.type}")
    one, other = left.values, right.values
    if one.type != other.type:
        common = pa.float64() if left.kind == "number" else pa.large_string()
        one, other = one.cast(common, safe=False), other.cast(common, safe=False)
    return COMPARE[op](one, other)


def like(of: Column, pattern: Value, ignore_case: bool) -> Any:
    """Arrow booleans [V] of `column like pattern`, null where unknown."""
    if of.kind not in ("text", "null") or of.lists is not None:
        raise InputError(f"`like` is for text, the column is {of.type}")
    if pattern is None or of.kind == "null":
        return _all_unknown(of.values)
    if not isinstance(pattern, str):
        raise InputError("the pattern of `like` is a text")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise InputError("the pattern ends in a lone backslash; write two")
    try:
        if "\\" in pattern:  # which match_like keeps or drops, by the rest of the pattern
            regex = _like_as_regex(pattern)
            return pc.match_substring_regex(of.values, regex, ignore_case=ignore_case)
        return pc.match_like(of.values, pattern, ignore_case=ignore_case)
    except pa.ArrowInvalid:
        raise InputError("the pattern is too long") from None


def _like_as_regex(pattern: str) -> str:
    wild = {"%": ".*", "_": "."}
    parts = re.findall(r"\\?.", pattern, re.DOTALL)
    return r"(?s)\A" + "".join(wild.get(part) or re.escape(part[-1]) for part in parts) + r"\z"


def _values_with_value(op: str, of: Column, value: Value) -> Any:
    value = _as_kind(value, of)
    if value is None:
        return _all_unknown(of.values)
    kind = of.values.type
    if scalars := _scalars(value, kind):
        return COMPARE[op](of.values, scalars[0])
    # No value of the column's type, as 1.5 is no integer: `x < 1.5` is `x <= 1`.
    assert isinstance(value, Fraction)
    low, high, step = _grid(kind)
    if op in ("eq", "neq"):
        return _where_known(of.values, op == "neq")
    below = op in ("lt", "lte")
    if not low <= value <= high:
        return _where_known(of.values, below == (value > high))
    nearest = (floor if below else ceil)(value / step) * step
    return COMPARE["lte" if below else "gte"](of.values, _scalars(nearest, kind)[0])


def _as_kind(value: Value, of: Column) -> Value:
    """The value as one of the column's kind; for times, the exact number of its ticks."""
    if of.kind == "null" or value is None:
        return None
    if of.kind == "time" and isinstance(value, str):
        value = moment(value)
    if of.kind == "time" and isinstance(value, datetime):
        if value.tzinfo is not None and of.zone is None:
            raise InputError("the column has no time zone, so the time may have none")
        since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - EPOCH
        return of.ticks * (since // timedelta(microseconds=1)) / 1_000_000
    given = {str: "text", Fraction: "number", bool: "boolean", datetime: "time"}[type(value)]
    if given != of.kind:
        raise InputError(f"a column of {of.type} does not compare with a {given}")
    return value


def moment(text: str) -> datetime:
    """A date or time as ISO 8601 writes it, as in 2024-05-31 or 2024-05-31 12:00."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text[:40]!r} is no date or time, as in '2024-05-31 12:00'") from None


def _scalars(value: Value, kind: pa.DataType) -> list[pa.Scalar]:
    """The value as one of the type; nothing where it is null or the type has no such value."""
    if value is None:
        return []
    if not isinstance(value, Fraction):
        return [pa.scalar(value, kind)]
    if pa.types.is_floating(kind):
        return [pa.scalar(float(value), kind)]
    low, high, step = _grid(kind)
    if not low <= value <= high or (value / step).denominator != 1:
        return []
    if pa.types.is_decimal(kind):
        digits = Decimal(int(value / step)).as_tuple()
        return [pa.scalar(Decimal((digits.sign, digits.digits, -kind.scale)), kind)]
    return [pa.scalar(int(value), kind)]


def _grid(kind: pa.DataType) -> tuple[Fraction, Fraction, Fraction]:
    """(lowest, highest, distance) of the values of a type of integers or decimals."""
    if pa.types.is_decimal(kind):
        step = Fraction(10) ** -kind.scale
        return -(10**kind.precision - 1) * step, (10**kind.precision - 1) * step, step
    low = 0 if pa.types.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
    return Fraction(low), Fraction(low + 2**kind.bit_width - 1), Fraction(1)


def _without_nan(values: Any) -> Any:
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    missing = pc.is_nan(values)
    if not pc.any(missing).as_py():
        return values
    return pc.if_else(missing, pa.scalar(None, values.type), values)


def _where_known(values: Any, holds: bool) -> Any:
    return pc.if_else(pc.is_valid(values), pa.scalar(holds), unknown())


def _all_unknown(values: Any) -> Any:
    return pa.nulls(len(values), pa.bool_())


def _any_member(lists: Any, holds: Any) -> pa.Array:
    """[V] whether it holds for any member of a list: as `or` over them, so False if it is empty."""
    end = np.cumsum(_numpy(pc.fill_null(pc.list_value_length(lists), 0)), dtype=np.int64)

    def any_of(members: Any) -> np.ndarray:
        so_far = np.concatenate([[0], np.cumsum(_numpy(members))])[np.concatenate([[0], end])]
        return so_far[1:] > so_far[:-1]

    found = any_of(pc.fill_null(holds, False))
    unknown = _numpy(pc.is_null(lists))
    if holds.null_count:
        unknown = unknown | any_of(pc.is_null(holds)) & ~found
    return pa.array(found, mask=unknown)


def _numpy(values: Any) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)
