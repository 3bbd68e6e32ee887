"""Filters: which items of a catalogue an SQL condition over its columns holds for."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError, nearest

LONGEST = 10_000
"""Characters of an expression."""
DEEPEST = 25
"""Brackets and `not` that may be open at once; the parser takes many calls for each."""

Node: TypeAlias = Any  # sqlglot's Expression, which is imported when a filter is read
COMPARE: dict[str, Callable[..., Any]] = {
    "eq": pc.equal,
    "neq": pc.not_equal,
    "lt": pc.less,
    "lte": pc.less_equal,
    "gt": pc.greater,
    "gte": pc.greater_equal,
}
MIRRORED = {"eq": "eq", "neq": "neq", "lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte"}


def passing(expression: str, catalogue: pa.Table) -> np.ndarray:
    """bool [V+1]: the items that the expression holds for; row 0, padding, is False.

    `expression` is an SQL condition over the columns of `catalogue` (row i-1 is item i), as in
    `category = 'lipstick' and price < 20`: = <> < <= > >=, in, between, like, is null, is not null,
    and, or, not, parentheses. Names of columns are exact, one with odd characters stands in double
    quotes; texts stand in single ones. What is compared with null is unknown and does not pass. A
    column of lists takes = and in, which hold when any member of the list does.

    InputError, which names the part, for anything else.
    """
    tree = _parsed(expression)
    try:
        holds = _condition(tree, catalogue)
    except RecursionError:
        raise InputError("the filter nests too deep") from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(f"the filter compares what does not compare: {error}") from None
    passes_V = np.zeros(catalogue.num_rows + 1, dtype=bool)
    passes_V[1:] = pc.fill_null(holds, False).to_numpy(zero_copy_only=False)
    return passes_V


def _parsed(expression: str) -> Node:
    import sqlglot
    from sqlglot.errors import SqlglotError

    if not isinstance(expression, str) or not expression.strip():
        raise InputError("the filter is empty; write a condition, as in price < 20")
    if len(expression) > LONGEST:
        raise InputError(f"the filter has {len(expression):,} characters; {LONGEST:,} are read")
    deep = expression.count("(") + expression.lower().count("not ")
    if deep > DEEPEST:
        raise InputError(f"the filter nests too deep: {deep} brackets and not, at most {DEEPEST}")
    try:
        # As part of a query: a condition alone may be taken for a command, which is logged.
        query = sqlglot.parse_one(f"select 1 where {expression}\n", dialect="duckdb")
    except (SqlglotError, RecursionError):
        raise InputError(f"the filter cannot be read: {_cut(expression)}") from None
    parts = {name for name, part in query.args.items() if part}
    if query.key != "select" or not parts <= {"expressions", "where", "kind", "hint"}:
        raise InputError(f"the filter is more than a condition: {_cut(expression)}")
    return query.args["where"].this


def _condition(node: Node, table: pa.Table) -> Any:
    """Boolean Arrow values [V], null where unknown."""
    match node.key:
        case "and" | "or":
            both = pc.and_kleene if node.key == "and" else pc.or_kleene
            return both(_condition(node.this, table), _condition(node.expression, table))
        case "not":
            return pc.invert(_condition(node.this, table))
        case "paren":
            return _condition(node.this, table)
        case "between":
            return pc.and_kleene(
                _compared("gte", node.this, node.args["low"], table),
                _compared("lte", node.this, node.args["high"], table),
            )
        case "in" if node.args.get("query") is None and node.expressions:
            column = _column(node.this, table)
            values = pa.array([_literal(value) for value in node.expressions])
            return _any_member(column, lambda x: _in(x, values, node))
        case "like":
            column, pattern = _column(node.this, table), _literal(node.expression)
            if not isinstance(pattern, str):
                raise InputError(f"like takes a text in the filter: {_cut(node.sql())}")
            holds = pc.match_like(column, pattern)
            return pc.invert(holds) if node.args.get("negate") else holds
        case "is" if node.expression.key == "null":
            return pc.is_null(_column(node.this, table))
        case "column":
            values = _column(node, table)
            if not pa.types.is_boolean(values.type):
                raise InputError(f"column {node.name!r} is {values.type}: that is no condition")
            return values
        case key if key in COMPARE:
            return _compared(key, node.this, node.expression, table)
    raise InputError(f"the filter holds what is not allowed in one: {_cut(node.sql())}")


def _compared(kind: str, left: Node, right: Node, table: pa.Table) -> Any:
    if left.key != "column" and right.key == "column":
        left, right, kind = right, left, MIRRORED[kind]
    column = _column(left, table)
    if right.key == "column":
        return COMPARE[kind](column, _column(right, table))
    value = _literal(right)
    if pa.types.is_nested(column.type) and kind != "eq":
        raise InputError(f"column {left.name!r} holds lists, which take = and in alone")

    def holds(values: Any) -> Any:
        _check_kind(left, values.type, value)
        return COMPARE[kind](values, pa.scalar(value))

    return _any_member(column, holds)


def _any_member(column: Any, holds: Callable[[Any], Any]) -> Any:
    """`holds` of a column, or of any member of the lists in it; null where a list is null."""
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return holds(column)
    lists = column.combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy()
    found = pc.fill_null(holds(pc.list_flatten(lists)), False).to_numpy(zero_copy_only=False)
    any_V = np.zeros(len(lists), dtype=bool)
    any_V[rows[found]] = True
    return pa.array(any_V, mask=lists.is_null().to_numpy(zero_copy_only=False))


def _in(values: Any, wanted: pa.Array, node: Node) -> Any:
    for value in wanted.to_pylist():
        _check_kind(node.this, values.type, value)
    found = pc.is_in(values, value_set=wanted.cast(values.type, safe=False))
    return pc.if_else(pc.is_valid(values), found, pa.scalar(None, pa.bool_()))


def _check_kind(column: Node, kind: pa.DataType, value: Any) -> None:
    """InputError for a text beside a number, and the like."""
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    fits = (
        isinstance(value, str)
        if text
        else isinstance(value, bool)
        if pa.types.is_boolean(kind)
        else isinstance(value, int | float) and not isinstance(value, bool)
        if number
        else True
    )
    if not fits:
        raise InputError(f"column {column.name!r} is {kind}: it does not compare with {value!r}")


def _column(node: Node, table: pa.Table) -> Any:
    if node.key != "column" or node.args.get("table"):
        raise InputError(f"the filter needs the name of a column at {_cut(node.sql())}")
    if node.name not in table.column_names:
        names = ", ".join(map(repr, table.column_names))
        near = nearest(node.name, table.column_names)
        raise InputError(f"no column {node.name!r} to filter by{near} (columns: {names})")
    return table[node.name]


def _literal(node: Node) -> Any:
    match node.key:
        case "literal" if node.is_string:
            return node.this
        case "literal":
            text = node.this
            return int(text) if text.isdigit() else float(text)
        case "neg" if node.this.key == "literal" and not node.this.is_string:
            return -_literal(node.this)
        case "boolean":
            return bool(node.this)
        case "paren":
            return _literal(node.this)
    raise InputError(f"the filter needs a text or a number at {_cut(node.sql())}")


def _cut(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
