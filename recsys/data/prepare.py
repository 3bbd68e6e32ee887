"""Raw logs to data set folders: Ibis expressions, run by DuckDB inside the process, out of core."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import recsys
from recsys.config import to_dict
from recsys.data.columns import count_of, typed_log
from recsys.data.formats import Report, read_rows
from recsys.data.interactions import Columns, Source
from recsys.data.item_table import read_item_table
from recsys.data.sequences import FORMAT_VERSION, SequenceDataset, fingerprint, write_sequences
from recsys.data.sessions import (
    cut_at_gaps,
    facts_of_test,
    report_sessions,
    session_column,
    set_apart,
    whole_source,
)
from recsys.data.text import without_text
from recsys.errors import InputError, WorkError
from recsys.whole import is_disk_full

Duplicates = Literal["exact", "keep", "first", "last", "consecutive"]
BATCH_ROWS = 1 << 20
OWN_FILES = ("dataset.json", "sequences.arrow", "items.parquet", "info.png")


@dataclass(frozen=True)
class DataConfig:
    """Settings named data.* on the command line."""

    min_user_events: int | None = None
    """Shortest history kept, in interactions; where not given, what the source expects (1 for own
    files)."""
    min_item_events: int | None = None
    """Rarest item kept, in interactions; as above."""
    duplicates: Duplicates = "exact"
    """exact drops rows equal in user, item and time; first and last keep one row of each user and
    item; consecutive drops immediate repeats; keep drops nothing."""
    user_column: str | None = None
    """Column of user ids; guessed from the names if not given."""
    item_column: str | None = None
    """Column of item ids; guessed from the names if not given."""
    time_column: str | None = None
    """Column of times; guessed from the names if not given."""
    sessions: str | None = None
    """What is one sequence, where that is not a user: gap:30m ends a session at a longer pause (s,
    m, h, d), column:NAME holds session ids, lines takes each line of a text for a session."""
    test: str | None = None
    """A file or folder with a test set of its own, in the format of the log; split.kind=sessions
    asks for its items."""
    items: str | None = None
    """A table of items (CSV, JSON lines, Parquet): their ids, and titles, brands, categories or any
    other texts, in the place of what the source knows of them."""
    items_id_column: str | None = None
    """Column of item ids in data.items; guessed from the names if not given."""

    def __post_init__(self) -> None:
        for name in ("min_user_events", "min_item_events"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"data.{name} must be at least 1, got {value}")
        if session_column(self.sessions) is not None and self.user_column is not None:
            raise InputError(
                f"data.user_column={self.user_column} and data.sessions={self.sessions} both say"
                " what is one sequence; leave one of them out"
            )
        for name in ("test", "items"):
            if getattr(self, name) == "":
                raise InputError(f"data.{name} names no file")

    @property
    def columns(self) -> Columns:
        """The columns that hold an interaction; a session's id stands in for the user's."""
        user = session_column(self.sessions) or self.user_column
        return Columns(user, self.item_column, self.time_column)


def prepare(
    source: Source,
    out: Path,
    config: DataConfig = DataConfig(),
    *,
    engine: Literal["duckdb", "spark"] = "duckdb",
    report: Report,
) -> SequenceDataset:
    """Write the data set folder `out`, whole or not at all, and open it.

    Raises InputError where the log cannot be read or nothing is left of it, WorkError where the
    disk is full.
    """
    if engine != "duckdb":
        raise InputError(
            f"--engine {engine} is not in this version; --engine duckdb works out of core"
        )
    if out.exists() and not _is_ours(out) and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a prepared data set; choose another --out")
    source = _with_items(whole_source(source, config.sessions, config.test), config, report)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _prepare_into(staging / "whole", source, config, report)
        _replace(staging / "whole", out, staging / "old")
    except Exception as error:
        if is_disk_full(error):
            raise WorkError(f"no space left in {out.parent} to prepare {source.name}") from None
        if isinstance(error, RuntimeError) and "interrupted" in str(error).lower():
            raise KeyboardInterrupt from None  # Ctrl-C, in the words of the engine
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return SequenceDataset.load(out)


def _is_ours(out: Path) -> bool:
    """Whether a folder holds a data set, however damaged, and no file of another kind in the place
    of its description."""
    try:
        info = json.loads((out / "dataset.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return (out / "sequences.arrow").is_file() and (out / "dataset.json").is_file()
    return isinstance(info, dict) and {"format", "fingerprint"} <= info.keys()


def _prepare_into(folder: Path, source: Source, config: DataConfig, report: Report) -> None:
    """Run the whole preparation and fill `folder`."""
    import ibis

    folder.mkdir()
    con = ibis.duckdb.connect(folder.parent / "work.duckdb")
    con.raw_sql("SET preserve_insertion_order = true")
    con.raw_sql("SET TimeZone = 'UTC'")
    try:
        rows = read_rows(con, source, config.columns, report)
        raw = con.create_table("raw", rows, temp=True)
        log, unit = typed_log(con, raw, source, report)
        log = cut_at_gaps(con, set_apart(con, log, source), source, config.sessions, unit)
        total = count_of(log)
        log, dropped = _without_duplicates(con, log, config.duplicates, unit is not None, report)
        least_user = config.min_user_events or source.min_user_events
        least_item = config.min_item_events or source.min_item_events
        log = _k_core(con, log, least_user, least_item, source, report)
        report_sessions(log, config.sessions, report)
        facts = {
            "time_unit": unit,
            "rows_read": total,
            "duplicates_dropped": dropped,
            "settings": {
                **to_dict(config),
                "min_user_events": least_user,
                "min_item_events": least_item,
            },
            "source": [file.name for file in source.files],
            **facts_of_test(con, log, source, report),
        }
        _write(con, log, folder, source, facts, report)
    finally:
        con.disconnect()


def _without_duplicates(
    con: Any, log: Any, which: Duplicates, timed: bool, report: Report
) -> tuple[Any, int]:
    """(log without the duplicates that `which` names, how many rows that dropped)."""
    import ibis

    if which == "keep" or (which == "exact" and not timed):
        return log, 0
    if which == "exact":
        kept = log.group_by("user", "item", "time").agg(row=log.row.min())
    elif which == "consecutive":
        before = log.item.lag().over(group_by=log.user, order_by=[log.time, log.row])
        marked = log.mutate(before=before)
        kept = marked.filter(marked.before.isnull() | (marked.before != marked.item)).drop("before")
    else:
        order = [log.time, log.row]
        if which == "last":
            order = [log.time.desc(), log.row.desc()]
        place = ibis.row_number().over(group_by=[log.user, log.item], order_by=order)
        marked = log.mutate(place=place)
        kept = marked.filter(marked.place == 0).drop("place")
    kept = con.create_table("deduplicated", kept.select("user", "item", "time", "row"), temp=True)
    dropped = count_of(log) - count_of(kept)
    if dropped:
        report(f"duplicates: {dropped:,} rows dropped (data.duplicates={which})")
    return kept, dropped


def _k_core(
    con: Any, log: Any, least_user: int, least_item: int, source: Source, report: Report
) -> Any:
    """The largest part of the log in which every user and item has enough interactions."""
    before = total = count_of(log)
    rounds = 0
    while least_user > 1 or least_item > 1:
        for column, least in (("user", least_user), ("item", least_item)):
            if least > 1:
                counts = log.group_by(column).agg(events=log.count())
                log = log.semi_join(counts.filter(counts.events >= least), column)
        log = con.create_table(f"core_{rounds}", log, temp=True)
        rounds += 1
        after = count_of(log)
        if after == before:
            break
        before = after
    if before == 0:
        raise InputError(
            f"nothing is left of {total:,} interactions of {source.where} with min_user_events="
            f"{least_user} and min_item_events={least_item}; lower them"
        )
    if rounds:
        report(f"k-core: {before:,} of {total:,} interactions kept, fixed after {rounds} rounds")
    return log


def _write(
    con: Any, log: Any, folder: Path, source: Source, facts: dict[str, Any], report: Report
) -> None:
    """Number users and items by first appearance, sort, and write the three files."""
    import pyarrow.parquet as pq

    users = _numbers(con, log, "user")
    items = _numbers(con, log, "item")
    numbered = (
        log.join(users, "user")
        .join(items, "item")
        .select("user_number", "item_number", "time", "row")
        .order_by("user_number", "time", "row")
    )
    raw_users = users.order_by("user_number").user.to_pyarrow()
    raw_items = items.order_by("item_number").select("item", "events").to_pyarrow()
    flat, offsets, times = _stream(
        con, numbered, folder, len(raw_users), facts["time_unit"] is not None
    )
    write_sequences(folder / "sequences.arrow", _combined(raw_users), flat, offsets, times)
    raw_ids = _combined(raw_items["item"])
    digest = fingerprint(flat, offsets, times, raw_ids, facts.get("test_users", 0))
    catalogue = _catalogue(raw_items, source, facts["settings"]["items"], report)
    pq.write_table(catalogue, folder / "items.parquet")
    info = {
        "format": FORMAT_VERSION,
        "name": source.name,
        "fingerprint": digest,
        "users": len(raw_users),
        "items": raw_items.num_rows,
        "interactions": len(flat),
        "items_without_text": without_text(catalogue),
        "time_range": None if times is None else [int(times.min()), int(times.max())],
        **facts,
        "version": recsys.__version__,
    }
    del flat, times
    for name in ("items.raw", "times.raw"):
        (folder / name).unlink(missing_ok=True)
    (folder / "dataset.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def _numbers(con: Any, log: Any, column: str) -> Any:
    """Each raw id with its number in order of first appearance (from 0) and its count."""
    import ibis

    found = log.group_by(column).agg(first=log.row.min(), events=log.count())
    number = ibis.row_number().over(order_by=found.first)
    numbered = found.mutate(**{f"{column}_number": number.cast("int64")}).drop("first")
    return con.create_table(f"{column}_numbers", numbered, temp=True)


def _batches(con: Any, table: Any) -> pa.RecordBatchReader:
    """The rows of an expression in Arrow batches. Asked of DuckDB itself: Ibis 12 calls a method
    that DuckDB 2 no longer has."""
    return con.con.sql(con.compile(table)).to_arrow_reader(BATCH_ROWS)


def _stream(
    con: Any, numbered: Any, folder: Path, num_users: int, timed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Write the sorted rows to flat files batch by batch; memory-mapped items, offsets, times."""
    lengths = np.zeros(num_users, dtype=np.int64)
    with open(folder / "items.raw", "wb") as items, open(folder / "times.raw", "wb") as times:
        for batch in _batches(con, numbered):
            user = batch.column("user_number").to_numpy()
            lengths += np.bincount(user, minlength=num_users)
            items.write((batch.column("item_number").to_numpy() + 1).astype(np.int32).tobytes())
            if timed:
                times.write(batch.column("time").to_numpy().astype(np.int64).tobytes())
    flat = np.memmap(folder / "items.raw", dtype=np.int32, mode="r")
    moments = np.memmap(folder / "times.raw", dtype=np.int64, mode="r") if timed else None
    return flat, np.concatenate([[0], np.cumsum(lengths)]), moments


def _with_items(source: Source, config: DataConfig, report: Report) -> Source:
    """The source with the user's own table of items in the place of what it knows itself."""
    if config.items is None:
        if config.items_id_column is not None:
            raise InputError("data.items_id_column says how data.items is read; give that too")
        return source
    path = Path(config.items)
    known = read_item_table(path, config.items_id_column, report, config.item_column)
    return replace(source, read_items=lambda: known)


def _catalogue(raw_items: pa.Table, source: Source, own: str | None, report: Report) -> pa.Table:
    """Raw id, count, and what the source, or the user's `own` table, knows of each item."""
    table = pa.table({"item": raw_items["item"], "count": raw_items["events"].cast(pa.int64())})
    if source.read_items is not None:
        known = source.read_items()
        # As texts: 7 and "7" are one item to the table of items, whatever the log's ids are.
        keys = _combined(known["item"]).cast(pa.string())
        place = pc.index_in(_combined(table["item"]).cast(pa.string()), keys)
        if own is not None and place.null_count == len(place):
            raise InputError(
                f"{own} names none of the {len(place):,} items of {source.where}: its ids are"
                f" {_examples(known['item'])}, those of the log {_examples(table['item'])};"
                " data.items_id_column says which column holds them"
            )
        if place.null_count:
            where = "what the source knows of items" if own is None else own
            report(f"{place.null_count:,} of {len(place):,} items are not in {where}")
        for name in known.column_names:
            if name != "item":
                table = table.append_column(name, _combined(known[name]).take(place))
    return table


def _examples(ids: pa.ChunkedArray) -> str:
    return ", ".join(map(repr, ids[:2].to_pylist())) + (", …" if len(ids) > 2 else "")


def _combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _replace(new: Path, out: Path, old: Path) -> None:
    """Put the new folder in place of `out`; what was there is moved away first, then removed.

    Files in `out` that are not a data set's own are kept.
    """
    if not out.exists():
        os.replace(new, out)
        return
    os.replace(out, old)
    try:
        os.replace(new, out)
    except BaseException:
        os.replace(old, out)
        raise
    for other in old.iterdir():
        if other.name not in OWN_FILES:
            os.replace(other, out / other.name)
