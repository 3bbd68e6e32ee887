"""Filters: which items of a catalogue an SQL condition over its columns holds for."""

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError, nearest
from recsys.retrieval.compare import (
    COMPARE,
    Column,
    Value,
    among,
    column,
    is_null,
    like,
    moment,
    with_column,
    with_value,
)

LONGEST = 10_000
"""Characters of an expression."""
DEEPEST = 25
"""Levels of brackets and `not`. The parser takes about twenty calls for each, of Python's 1,000."""
SHOWN = 60
"""Characters of an expression that an error repeats."""
STATEMENTS = ("SEMICOLON", "SELECT", "WITH", "FROM", "DESCRIBE", "SUMMARIZE")
"""Tokens that only whole statements and subqueries have."""
BOTH_SIDES = {"this", "expression"}
ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(("and", "or", "is", *COMPARE), BOTH_SIDES),
    **dict.fromkeys(("like", "ilike"), BOTH_SIDES | {"negate"}),
    **{kind: {"this"} for kind in ("not", "paren", "neg", "column", "boolean")},
    "in": {"this", "expressions"},
    "between": {"this", "low", "high"},
    "literal": {"this", "is_string"},
    "cast": {"this", "to"},
    "null": set(),
}
"""The SQL of a filter: kinds of nodes, and what each may hold."""
MIRRORED = {"eq": "eq", "neq": "neq", "lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte"}

Node: TypeAlias = Any  # sqlglot's Expression; sqlglot is imported only when a filter is read


def passing(expression: str, catalogue: pa.Table) -> np.ndarray:
    """[V+1] bool: the items that the expression holds for; row 0, the padding, is False.

    expression: an SQL condition over the columns of `catalogue` (row i-1 is item i), as in
    `category = 'lipstick' and price < 20`: `= <> != < <= > >=`, `in`, `between`, `like` (`%` any
    text, `_` one character, a backslash takes the next one literally), `ilike`, `is null`,
    `is true`, `and`, `or`, `not`, parentheses. Words are in any case, names of columns exact; a
    name with odd characters stands in double quotes, a text in single ones. Columns of dates and
    times compare with ISO texts like '2024-05-31 12:00', which mean UTC if the column has a zone.

    As in SQL, what is compared with null is unknown, also under `not`, and an unknown item does
    not pass; a float that is no number (NaN) counts as null. Numbers compare exactly; for a column
    of floats the literal is first rounded to its width, and two columns of different types compare
    as float64. A column of lists takes `=` and `in`, which hold when any member of the list does,
    and `<>` and `not in`, their opposites.

    Raises InputError, which names the part, for anything else: other SQL, an unknown column, types
    that do not compare, more than 10,000 characters or 25 levels of parentheses and `not`.
    """
    try:
        holds = _condition(_parsed(expression), catalogue)
    except RecursionError:
        raise _too_deep() from None
    passes = np.zeros(catalogue.num_rows + 1, dtype=bool)
    passes[1:] = pc.fill_null(holds, False).to_numpy(zero_copy_only=False)
    return passes


def _parsed(expression: str) -> Node:
    from sqlglot import exp
    from sqlglot.dialects.dialect import Dialect
    from sqlglot.errors import ParseError, TokenError

    if len(expression) > LONGEST:
        raise InputError(f"a filter has at most {LONGEST:,} characters, got {len(expression):,}")
    if any("\ud800" <= sign <= "\udfff" for sign in expression):
        raise InputError(f"the filter holds half a character: {_cut(ascii(expression))}")
    dialect = Dialect.get_or_raise("duckdb")
    try:
        tokens = dialect.tokenize(expression)
    except TokenError:
        raise InputError(f"the filter leaves a quote open: {_cut(expression)}") from None
    if _depth(tokens) > DEEPEST:
        raise _too_deep()
    # Statements end here: the parser logs about those that it cannot read.
    for number, token in enumerate(tokens):
        kind = token.token_type.name
        if kind in STATEMENTS or (number == 0 and kind == "VAR" and token.text.lower() == "if"):
            raise InputError(
                f"a filter is one condition, without {token.text!r}; a column of this name stands"
                " in double quotes"
            )
    try:
        nodes = dialect.parser().parse_into(exp.Condition, tokens, expression)
    except ParseError as error:
        place = error.errors[0] if error.errors else {}
        before, at = place.get("start_context") or "", place.get("highlight") or ""
        raise InputError(f"the filter cannot be read at {at!r} in {_cut(before + at)}") from None
    if not nodes or nodes[0] is None:
        raise InputError("the filter is empty; write a condition, as in price < 20")
    return nodes[0]


def _depth(tokens: list[Any]) -> int:
    """The most brackets and `not`s that are open at once."""
    deepest, nots = 0, [0]
    for token in tokens:
        match token.token_type.name:
            case "L_PAREN" | "L_BRACKET" | "L_BRACE":
                nots.append(0)
            case "NOT":
                nots[-1] += 1
            case "AND" | "OR":
                nots[-1] = 0
            case "R_PAREN" | "R_BRACKET" | "R_BRACE" if len(nots) > 1:
                nots.pop()
        deepest = max(deepest, len(nots) - 1 + sum(nots))
    return deepest


def _condition(node: Node, table: pa.Table) -> Any:
    """Arrow booleans [V], null where unknown."""
    match _kind(node):
        case "and" | "or":
            return _chain(node, table)
        case "not":
            return pc.invert(_condition(node.this, table))
        case "paren":
            return _condition(node.this, table)
        case "is":
            return _is(node, table)
        case "boolean" | "null" | "column":
            return _word(node, table)
        case "in" | "between" | "like" | "ilike" | "eq" | "neq" | "lt" | "lte" | "gt" | "gte":
            return _comparison(node, table)
    raise _unsupported(node)


def _chain(node: Node, table: pa.Table) -> Any:
    """`a and b and c …`, which the parser nests to the left, without a call for each."""
    combine: Callable[..., Any] = pc.and_kleene if node.key == "and" else pc.or_kleene
    parts, first = [], node
    while _kind(first) == node.key:
        parts.append(first.expression)
        first = first.this
    holds = _condition(first, table)
    for part in reversed(parts):
        holds = combine(holds, _condition(part, table))
    return holds


def _word(node: Node, table: pa.Table) -> Any:
    """A condition of one word: true, false, null or a column of booleans."""
    value = _operand(node, table)
    if not isinstance(value, Column):
        return pa.repeat(pa.scalar(value, pa.bool_()), table.num_rows)
    if value.kind != "boolean" or value.lists is not None:
        raise InputError(f"{_part(node)} in the filter is {value.type}, which is no condition")
    return value.values


def _is(node: Node, table: pa.Table) -> Any:
    left, right = _inside(node.this), _inside(node.expression)
    if _kind(left) == "column" and _kind(right) == "null":
        return is_null(_read(left, table))
    if _kind(right) != "boolean":
        raise InputError(
            f"{_part(node)} in the filter: write `COLUMN is null`, `is true` or both with `not`"
        )
    holds = pc.equal(_condition(left, table), pa.scalar(bool(right.this)))
    return pc.fill_null(holds, False)


def _comparison(node: Node, table: pa.Table) -> Any:
    left = _operand(node.this, table)
    others = [node.args[name] for name in ("low", "high", "expression") if node.args.get(name)]
    right = [_operand(other, table) for other in [*others, *node.args.get("expressions", [])]]
    try:
        match node.key:
            case "between":
                return pc.and_kleene(_pair("gte", left, right[0]), _pair("lte", left, right[1]))
            case "in":
                return _in(left, right)
            case "like" | "ilike":
                if not isinstance(left, Column) or isinstance(right[0], Column):
                    raise InputError("`like` takes a column and a literal text")
                holds = like(left, right[0], ignore_case=node.key == "ilike")
                return pc.invert(holds) if node.args.get("negate") else holds
        return _pair(node.key, left, right[0])
    except InputError as error:
        raise InputError(f"{_part(node)} in the filter: {error}") from None


def _pair(op: str, left: Column | Value, right: Column | Value) -> Any:
    if isinstance(left, Column):
        if isinstance(right, Column):
            return with_column(op, left, right)
        return with_value(op, left, right)
    if isinstance(right, Column):
        return with_value(MIRRORED[op], right, left)
    raise InputError("it compares no column")


def _in(left: Column | Value, right: list[Column | Value]) -> Any:
    values = [value for value in right if not isinstance(value, Column)]
    if not isinstance(left, Column) or len(values) < len(right) or not values:
        raise InputError("`in` takes a column and a list of literals")
    return among(left, values)


def _operand(node: Node, table: pa.Table) -> Column | Value:
    node = _inside(node)
    match _kind(node):
        case "column":
            values = _read(node, table)
            try:
                return column(values)
            except InputError as error:
                raise InputError(f"{_part(node)} in the filter: {error}") from None
        case "literal":
            return node.this if node.is_string else _number(node.this)
        case "neg" if _kind(node.this) == "literal" and not node.this.is_string:
            return -_number(node.this.this)
        case "boolean":
            return bool(node.this)
        case "null":
            return None
        case "cast" if _kind(node.this) == "literal" and node.this.is_string:
            if node.args["to"].this.name in ("DATE", "TIMESTAMP", "TIMESTAMPNTZ", "TIMESTAMPTZ"):
                return moment(node.this.this)
    raise _unsupported(node)


def _read(node: Node, table: pa.Table) -> pa.ChunkedArray:
    """The column of this name. Its errors list the columns there are."""
    name, columns = node.this, table.column_names
    if name.key != "identifier":
        raise _unsupported(node)
    if name.this not in columns:
        hint = "; a text stands in single quotes" if name.args.get("quoted") else ""
        raise InputError(
            f"no column {_cut(name.this)!r} for the filter{nearest(name.this, columns) or hint}"
            f" (columns: {', '.join(columns)})"
        )
    return table[name.this]


def _number(text: str) -> Fraction:
    """Exact; within the range of float64, so that no exponent makes it huge."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise InputError(f"{_cut(text)} in the filter is no number") from None
    if number and not -400 < number.adjusted() < 308:
        raise InputError(f"{_cut(text)} in the filter is beyond the range of numbers")
    return Fraction(number) if number else Fraction(0)


def _inside(node: Node) -> Node:
    while _kind(node) == "paren":
        node = node.this
    return node


def _kind(node: Node) -> str:
    """The kind of a node that a filter may have, with nothing in it that it may not have."""
    allowed = ALLOWED.get(node.key)
    if allowed is None or any(held for name, held in node.args.items() if name not in allowed):
        raise _unsupported(node)
    return node.key


def _unsupported(node: Node) -> InputError:
    return InputError(
        f"{_part(node)} is more than a filter may hold: columns, literals, comparisons, in,"
        " between, like, is null, and, or, not"
    )


def _too_deep() -> InputError:
    return InputError(f"the filter nests too deep; at most {DEEPEST} levels of brackets and not")


def _part(node: Node) -> str:
    from sqlglot.errors import ErrorLevel

    return _cut(node.sql("duckdb", comments=False, unsupported_level=ErrorLevel.IGNORE))


def _cut(text: str) -> str:
    """On one line, and no longer than an error may be."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
