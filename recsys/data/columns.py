"""The columns of a log as ids and times: what the values are, and which one cannot be that."""

from typing import Any

from recsys.data.formats import Report
from recsys.data.interactions import Source
from recsys.errors import InputError

TO_MICROSECONDS = {"s": 1_000_000, "ms": 1_000}
"""What a fraction of a unit is worth keeping in."""
ENDLESS = 9e18
"""Numbers from here on are beyond int64."""


def typed_log(con: Any, raw: Any, source: Source, report: Report) -> tuple[Any, str | None]:
    """(log with ids as int64 or text and times as int64, the unit of time or None)."""
    if count_of(raw) == 0:
        raise InputError(f"{source.where} is empty: it has no interactions")
    for column in ("user", "item"):
        _refuse_nulls(raw, column, source)
    typed = source.table is not None or source.format == "parquet"
    user, item = (_id(raw, column, typed, report) for column in ("user", "item"))
    if not value_of(raw.time.notnull().any()):
        log = raw.select(user=user, item=item, time=raw.row, row=raw.row)
        return con.create_table("log", log, temp=True), None
    _refuse_nulls(raw, "time", source)
    time, unit = _time(raw, source)
    return con.create_table(
        "log", raw.select(user=user, item=item, time=time, row=raw.row), temp=True
    ), unit


def _id(raw: Any, column: str, typed: bool, report: Report) -> Any:
    """The id column as int64 or text. Text from a source without types (`typed` false) is int64
    where every value is a whole number as written."""
    values = raw[column]
    if values.type().is_integer():
        fits = value_of(values.try_cast("int64").notnull().all())
        return values.cast("int64" if fits else "string")
    if values.type().is_floating():
        small = value_of((values.abs() < ENDLESS).all())
        whole = small and value_of((values == values.floor()).all())
        return values.cast("int64" if whole else "string")
    text = values.cast("string")
    if typed:
        return text
    # 007 and +7 are not the whole number 7: they would not come back as they were.
    as_written = text == text.try_cast("int64").cast("string")
    numbers = as_written.fill_null(False)
    if value_of(numbers.all()):
        return text.try_cast("int64")
    if value_of(numbers.any()):
        report(f"{column} ids are of mixed types: all are kept as text")
    return text


def _time(raw: Any, source: Source) -> tuple[Any, str]:
    """The time column as int64 and its unit."""
    import ibis

    values = raw.time
    if values.type().is_timestamp() or values.type().is_date():
        return _microseconds(values.cast("timestamp")), "us"
    if values.type().is_integer() and value_of(values.try_cast("int64").notnull().all()):
        return values.cast("int64"), _unit(value_of(values.max()))
    number = values.try_cast("float64")
    # Not a number, endless, or beyond int64: no time.
    number = (number.abs() < ENDLESS).ifelse(number, ibis.null("float64"))
    if value_of(number.notnull().all()):
        whole = values.try_cast("int64")
        if not value_of((number == number.floor()).all()):
            finer = TO_MICROSECONDS.get(_unit(value_of(number.max())), 0)
            if finer and value_of(number.abs().max()) < ENDLESS / finer:
                return (number * finer).round().cast("int64"), "us"
            number = number.round()  # a fraction of a unit too small to matter
            return number.cast("int64"), _unit(value_of(number.max()))
        exact = ibis.coalesce(whole, number.cast("int64"))
        return exact, _unit(value_of(exact.max()))
    # With an offset from UTC where the text has one; UTC otherwise, which is the connection's zone.
    text = values.cast("string")
    moment = text.try_cast("timestamp('UTC')").cast("timestamp")
    moment = text.re_search("[0-9]").ifelse(moment, ibis.null("timestamp"))  # not `infinity`
    bad = raw.filter(moment.isnull() if value_of(number.isnull().all()) else number.isnull())
    if count_of(bad):
        (first,) = bad.order_by("row").select("time", "row").limit(1).to_pyarrow().to_pylist()
        raise InputError(
            f"{source.where}: the time {first['time']!r} {_row(source, first['row'])} is"
            " neither a number nor an ISO date; mend it or choose another --time-column"
        )
    return _microseconds(moment), "us"


def _microseconds(moment: Any) -> Any:
    """A timestamp column as int64 microseconds since 1970, UTC."""
    return moment.truncate("s").epoch_seconds().cast("int64") * 1_000_000 + moment.microsecond()


def _unit(newest: int) -> str:
    """The unit of integer times, from the size of the newest: s, ms, us or ns since 1970."""
    for unit, below in (("s", 10**11), ("ms", 10**14), ("us", 10**17)):
        if newest < below:
            return unit
    return "ns"


def _refuse_nulls(raw: Any, column: str, source: Source) -> None:
    values = raw[column]
    none = values.isnull()
    if values.type().is_floating():
        none |= values.isnan() | values.isinf()
    missing = raw.filter(none)
    count = count_of(missing)
    if count:
        first = value_of(missing.row.min())
        raise InputError(
            f"{source.where}: {count:,} rows have no {column}, the first {_row(source, first)};"
            " remove them or fill them in"
        )


def _row(source: Source, row: int) -> str:
    """Where a row stands, in words; line numbers count the header."""
    number, place = row >> 40, row & ((1 << 40) - 1)
    if source.table is not None or source.format in ("parquet", "sequences", "lines"):
        return f"in row {place + 1}"
    header = source.format == "csv" and source.header is None
    return f"in line {place + 1 + header} of {source.parts[number].name}"


def value_of(expression: Any) -> Any:
    """A scalar expression's value. Through Arrow: `execute` would go through pandas."""
    return expression.to_pyarrow().as_py()


def count_of(table: Any) -> int:
    """Rows of an expression."""
    return value_of(table.count())
