"""Reading logs: what a file is, which columns hold an interaction, and its rows in file order."""

import glob
import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.data.files import DAMAGED
from recsys.data.heads import delimiter_of, head_of, header_of, json_names, quote_of
from recsys.data.interactions import Columns, Format, Source
from recsys.data.kinds import in_kinds, kinds_of_all
from recsys.errors import InputError, nearest

Report = Callable[[str], None]

FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".inter": "csv",
    ".data": "csv",
    ".dat": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "sequences",
}
GUESSES = {
    "user": (
        "user",
        "userid",
        "reviewerid",
        "uid",
        "visitorid",
        "customer",
        "customerid",
        "sessionid",
    ),
    "item": (
        "item",
        "itemid",
        "asin",
        "parentasin",
        "movieid",
        "productid",
        "product",
        "sku",
        "iid",
    ),
    "timestamp": ("timestamp", "time", "unixreviewtime", "datetime", "date", "ts", "eventtime"),
}


def source_from_path(path: Path, columns: Columns = Columns()) -> Source:
    """The log in a file, or in a folder of parts of one format, in order of their names."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    files: tuple[Path, ...] = (path,)
    if path.is_dir():
        files = tuple(sorted(file for file in path.iterdir() if _suffix(file) in FORMATS))
        if not files:
            raise InputError(f"{path} holds no files to read ({', '.join(FORMATS)}, each also .gz)")
    suffixes = {_suffix(file) for file in files}
    kinds = {FORMATS[suffix] for suffix in suffixes if suffix in FORMATS}
    if len(suffixes) != 1 or not kinds:
        raise InputError(
            f"{path} cannot be read: parts of one format are needed, one of {', '.join(FORMATS)}"
            f" (each also .gz); found {', '.join(sorted(suffixes))}"
        )
    (kind,) = kinds
    delimiter = None
    if kind == "sequences" and any(mark in head_of(files[0])[1] for mark in "\t,;|"):
        kind = "csv"
    return Source(_stem(path), files, format=kind, delimiter=delimiter, columns=columns)


def source_from_table(table: Any, columns: Columns, name: str) -> Source:
    """The log in a pandas DataFrame or an Arrow table."""
    if not isinstance(table, pa.Table):
        import pandas as pd

        if not isinstance(table, pd.DataFrame):
            raise InputError(
                f"data must be a path, a source name, a pandas DataFrame or an Arrow table, got"
                f" {type(table).__name__}"
            )
        if not table.columns.is_unique:
            raise InputError(f"the DataFrame has columns of one name: {list(table.columns)}")
        try:
            table = _table_of(table)
        except pa.ArrowException as error:
            raise InputError(f"the DataFrame cannot be read: {error}") from None
    return Source(name, table=table, columns=columns)


def _table_of(frame: Any) -> pa.Table:
    """A DataFrame as an Arrow table, columns of mixed Python types as texts."""
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        texts = frame.copy(deep=False)
        for name in frame.columns:
            if frame[name].dtype == object:
                # Not astype: pandas 2 would make a user called "None" of a missing one.
                texts[name] = frame[name].map(str, na_action="ignore")
        return pa.Table.from_pandas(texts, preserve_index=False)


def read_rows(con: Any, source: Source, wish: Columns, report: Report) -> Any:
    """The log as an ibis table on `con`: user, item, time (string, number or datetime; null without
    times) and row (int64, place in the log).

    Raises InputError that names the file and line where one cannot be read.
    """
    if source.table is not None:
        return _rows_of_table(con, source, source.table, wish, report)
    for file in source.parts:
        if not file.exists():
            raise InputError(f"{file} does not exist")
        if file.stat().st_size == 0:
            raise InputError(f"{file} is empty")
    parts = []
    for number, file in enumerate(source.parts):
        with _readable(file):
            said = report if number == 0 else _quiet
            parts.append(_read_file(con, source, file, wish, number, said))
    kinds = kinds_of_all(source.parts, parts)
    for number, (file, part) in enumerate(zip(source.parts, parts, strict=True)):
        with _readable(file):
            if number == 0:
                con.create_table("parts", in_kinds(part, kinds), temp=True)
            else:
                con.insert("parts", in_kinds(part, kinds))
    return con.table("parts")


def _rows_of_table(con: Any, source: Source, table: pa.Table, wish: Columns, report: Report) -> Any:
    if table.num_rows == 0:
        raise InputError(f"{source.name} is empty: it has no rows")
    columns = choose_columns(table.column_names, source, wish, report)
    used = [name for name in (columns.user, columns.item, columns.timestamp) if name]
    for name in used:
        if pa.types.is_duration(table.schema.field(name).type):
            raise InputError(f"column {name!r} of {source.name} holds durations")
    # Handed to DuckDB itself: Ibis 12 clears up behind an Arrow table in words DuckDB 2 refuses.
    with _readable(source.name):
        con.con.from_arrow(table.select(list(dict.fromkeys(used)))).create("part_0")
    rows = _numbered(con.table("part_0"), columns, 0)
    return in_kinds(rows, {name: rows[name].type() for name in rows.columns if name != "row"})


def choose_columns(names: list[str], source: Source, wish: Columns, report: Report) -> Columns:
    """The columns that were asked for, else the source's own, else a guess that is reported."""
    chosen: dict[str, str | None] = {}
    guessed = False
    for role in ("user", "item", "timestamp"):
        name = getattr(wish, role) or getattr(source.columns, role)
        if name is not None and name not in names:
            raise InputError(
                f"{source.where} has no column {name!r}{nearest(name, names)}"
                f" (columns: {', '.join(map(repr, names))})"
            )
        if name is None:
            name = next((n for guess in GUESSES[role] for n in names if _plain(n) == guess), None)
            # Where ids are in columns that were named, that there is no time needs no word.
            guessed |= name is not None or source.columns.item is None
        option = "time" if role == "timestamp" else role
        if name is None and role != "timestamp":
            raise InputError(
                f"which column of {source.where} holds the {option}? Say it with"
                f" --{option}-column (columns: {', '.join(map(repr, names))}), which `data prepare`"
                " and `train` take"
            )
        chosen[role] = name
    if guessed:
        time = repr(chosen["timestamp"]) if chosen["timestamp"] else "none, file order is the order"
        report(
            f"columns: user = {chosen['user']!r}, item = {chosen['item']!r}, time = {time}"
            " (guessed; --user-column, --item-column and --time-column say otherwise)"
        )
    return Columns(chosen["user"], chosen["item"], chosen["timestamp"])


def _read_file(
    con: Any, source: Source, file: Path, wish: Columns, number: int, report: Report
) -> Any:
    """One file as an ibis expression with user, item, time where it has one, and row."""
    if file.suffix == ".gz":
        _check_gzip(file)
    if source.format == "sequences":
        return _sequences(con, file, number)
    if source.format == "lines":
        siblings = source.test_files if file in source.test_files else source.files
        return _sessions(con, file, number, f"{file.name}:" if len(siblings) > 1 else "")
    source = replace(source, files=(file,), test_files=())  # messages name this part
    if source.format == "parquet":
        table = con.read_parquet(_as_pattern(file), hive_partitioning=False)
        return _numbered(table, choose_columns(list(table.columns), source, wish, report), number)
    if source.format == "json":
        names = json_names(file)
        columns = choose_columns(names, source, wish, report)
        used = [name for name in (columns.user, columns.item, columns.timestamp) if name]
        table = con.read_json(
            _as_pattern(file),
            columns=dict.fromkeys(used, "VARCHAR"),
            format="newline_delimited",
            hive_partitioning=False,
        )
        return _numbered(table, columns, number)
    return _delimited(con, source, file, wish, number, report)


def _delimited(
    con: Any, source: Source, file: Path, wish: Columns, number: int, report: Report
) -> Any:
    blank, line = head_of(file, source.encoding)
    delimiter = source.delimiter or delimiter_of(line)
    header = source.header or header_of(file, line, delimiter)
    columns = choose_columns(list(header), source, wish, report)
    quote = quote_of(file, source.encoding, delimiter, len(header))
    table = con.read_csv(
        _as_pattern(file),
        hive_partitioning=False,
        sep=delimiter,
        header=source.header is None,
        skip=blank,  # or a blank line would be the header, and the header a row
        columns=dict.fromkeys(header, "VARCHAR"),
        auto_detect=False,
        quote=quote,
        escape=quote,
        strict_mode=True,
    )
    return _numbered(table, columns, number)


def _as_pattern(file: Path) -> str:
    """The one file, for readers that take patterns of names."""
    return glob.escape(str(file))


def _numbered(table: Any, columns: Columns, number: int) -> Any:
    """User, item and, where there is one, time under these names; each row's place in the log."""
    import ibis

    names = {"user": columns.user, "item": columns.item, "time": columns.timestamp}
    row = ibis.row_number().cast("int64") + (number << 40)
    return table.select(**{role: table[name] for role, name in names.items() if name}, row=row)


def _sequences(con: Any, file: Path, number: int) -> Any:
    """`user item item …` lines as one row an item; a line with a user alone has no rows."""
    lines = _lines(con, file)
    pairs = lines.select(user=lines.words[0], item=lines.words[1:].unnest())
    return _numbered(pairs.filter(pairs.user.length() > 0), Columns("user", "item"), number)


def _sessions(con: Any, file: Path, number: int, prefix: str) -> Any:
    """`item item …` lines as one row an item; the user is `prefix` and the line's number."""
    lines = _lines(con, file)
    user = lines.line.cast("string") if not prefix else prefix + lines.line.cast("string")
    pairs = lines.select(user=user, item=lines.words.unnest())
    return _numbered(pairs.filter(pairs.item.length() > 0), Columns("user", "item"), number)


def _lines(con: Any, file: Path) -> Any:
    """The words of each line, and its number from 1; a blank line has one empty word or none."""
    import ibis

    # A delimiter that no text holds makes each line one column.
    lines = con.read_csv(
        _as_pattern(file),
        hive_partitioning=False,
        sep="\x01",
        header=False,
        columns={"text": "VARCHAR"},
        auto_detect=False,
        quote="",
        escape="",
    )
    words = lines.text.strip().re_replace(r"\s+", " ").split(" ")
    return lines.select(words=words, line=ibis.row_number() + 1)


@contextmanager
def _readable(file: Path | str) -> Iterator[None]:
    """Turn what the reader says of a broken file into an InputError that names it."""
    import duckdb

    try:
        yield
    except InputError:
        raise
    except (
        duckdb.Error,
        pa.ArrowInvalid,
        pa.ArrowNotImplementedError,
        *DAMAGED,
        UnicodeDecodeError,
    ) as error:
        text = " ".join(str(error).split())
        for marker in ("Try setting", "Possible Solution", "Possible fixes", "file = ", "LINE 1"):
            text = text.partition(marker)[0]
        raise InputError(f"{file} cannot be read: {text.strip()[:300]}") from None


def _check_gzip(file: Path) -> None:
    """Read a file to its end, by which its checksum is compared: DuckDB does not compare it."""
    with gzip.open(file) as stream:
        try:
            while stream.read(1 << 20):
                pass
        except EOFError:
            raise InputError(
                f"{file} cannot be read: it is cut before the end of GZIP stream"
            ) from None


def _plain(name: str) -> str:
    """A column name as it is compared with guesses: `user_id:token` and `userId` are `userid`."""
    return name.partition(":")[0].lower().replace("_", "").replace("-", "").replace(" ", "")


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _stem(path: Path) -> str:
    """What a log is called after its path. Runs are called after it too: it is no path itself."""
    name = path.resolve().name if path.name in ("", "..") else path.name
    stem = Path(name.removesuffix(".gz")).stem
    return (name if stem in ("", ".", "..") else stem).replace("\\", "-")


def _quiet(text: str) -> None:
    """The first part of a log has said it already."""
