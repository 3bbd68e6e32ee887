"""The types of the columns of a log in parts: each part may have its own, the log has one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys.errors import InputError


def kinds_of_all(files: Sequence[Path], parts: Sequence[Any]) -> dict[str, Any]:
    """The ibis type of each column but `row` that holds the values of all parts: whole numbers of
    several widths are int64, values of several kinds are text.

    InputError where some parts have a time and others have none.
    """
    timed = ["time" in part.columns for part in parts]
    if any(timed) and not all(timed):
        raise InputError(
            f"{files[timed.index(False)]} has no column of times, {files[timed.index(True)]} has"
            " one: all parts of a log need times, or none"
        )
    names = [name for name in parts[0].columns if name != "row"]
    return {name: _kind_of_all([part[name].type() for part in parts]) for name in names}


def in_kinds(part: Any, kinds: dict[str, Any]) -> Any:
    """user, item, time (null where there is none) and row of a part, as values of these types."""
    import ibis

    columns = {"time": ibis.null("int64")}
    columns |= {name: _as(part[name], kind) for name, kind in kinds.items()}
    return part.select(**{name: columns[name] for name in ("user", "item", "time")}, row=part.row)


def _kind_of_all(kinds: list[Any]) -> Any:
    import ibis

    found = {kind.copy(nullable=True) for kind in kinds}
    if len(found) == 1:
        return found.pop()
    return ibis.dtype("int64" if all(kind.is_integer() for kind in found) else "string")


def _as(values: Any, kind: Any) -> Any:
    import ibis

    if values.type().copy(nullable=True) == kind.copy(nullable=True):
        return values
    given = values.type()
    if not (kind.is_string() and (given.is_floating() or given.is_decimal())):
        return values.cast(kind)
    # 1.0 is what another part calls 1, and what is not a number is no value, as in floats alone.
    nothing = ibis.null("string")
    number = (values == values.floor()).ifelse(values.try_cast("int64").cast("string"), nothing)
    text = ibis.coalesce(number, values.cast("string"))
    return text if given.is_decimal() else (values.isnan() | values.isinf()).ifelse(nothing, text)
