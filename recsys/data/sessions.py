"""Sessions: histories cut at pauses, by a session column or by lines, and a test set given apart.

A session becomes what a user is elsewhere, one sequence. Its name stands in the user column.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from recsys.data.columns import count_of, value_of
from recsys.data.formats import Report, source_from_path
from recsys.data.interactions import Source
from recsys.errors import InputError

LINES = "lines"
TEST = "test:"
"""What the name of a sequence from a given test set begins with."""
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_A_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def gap_seconds(sessions: str | None) -> float | None:
    """The pause of `gap:30m` in seconds; None where sessions are made in another way."""
    kind, _, text = (sessions or "").partition(":")
    if kind != "gap" and not re.fullmatch(r"[\d.]+[a-z]*", kind):  # 30m alone is a slip
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not found or float(found[1]) == 0:
        raise InputError(
            f"data.sessions={sessions}: a gap is a number above 0 with the unit s, m, h or d, as in"
            " gap:30m"
        )
    return float(found[1]) * _SECONDS[found[2]]


def session_column(sessions: str | None) -> str | None:
    """The column that holds the session's id; None where sessions are made in another way."""
    if sessions is None or sessions == LINES or gap_seconds(sessions) is not None:
        return None
    name = sessions.removeprefix("column:")
    if not name:
        raise InputError(f"data.sessions={sessions} names no column; write column:NAME")
    return name


def whole_source(source: Source, sessions: str | None, test: str | None) -> Source:
    """The source with the test set's files behind its own, its lines read as `sessions` says."""
    if test is not None:
        if source.table is not None:
            raise InputError(f"data.test={test} needs a log in files, not {source.name} in memory")
        given = source_from_path(Path(test).expanduser())
        if given.format != source.format:
            raise InputError(
                f"data.test={test} is read as {given.format}, {source.where} as {source.format}:"
                " a test set has the format of its log"
            )
        source = replace(source, test_files=given.files)
    columns = source.table is not None or source.format != "sequences"
    if sessions == LINES:
        if columns:
            raise InputError(
                f"data.sessions=lines takes text of items with spaces between them (.txt);"
                f" {source.where} has columns: name one, as in data.sessions=column:session_id"
            )
        return replace(source, format="lines")
    if session_column(sessions) is not None and not columns:
        raise InputError(
            f"data.sessions={sessions}: {source.where} has no columns; data.sessions=lines takes"
            " each line for a session"
        )
    return source


def set_apart(con: Any, log: Any, source: Source) -> Any:
    """The log with user `u` of a given test set called `test:u`: a sequence of its own."""
    if not source.test_files:
        return log
    in_test = log.row >= _first_test_row(source)
    for files, part in ((source.files, ~in_test), (source.test_files, in_test)):
        if count_of(log.filter(part)) == 0:
            raise InputError(f"{_names(files)} is empty: it has no interactions")
    name = log.user.cast("string")
    log = log.mutate(user=in_test.ifelse(TEST + name, name))
    return con.create_table("set_apart", log, temp=True)


def cut_at_gaps(con: Any, log: Any, source: Source, sessions: str | None, unit: str | None) -> Any:
    """The log with the third session of user `u` called `u#3`, where `sessions` is a gap.

    A session ends where the next event of its user is later than the gap; `unit` is that of time.
    """
    pause = gap_seconds(sessions)
    if pause is None:
        return log
    if unit is None:
        raise InputError(
            f"data.sessions={sessions} needs times, {source.where} has none: name their column with"
            " --time-column, or that of session ids with data.sessions=column:NAME"
        )
    longest = min(int(pause * _A_SECOND[unit]), 2**63 - 1)
    before = log.time.lag().over(group_by=log.user, order_by=[log.time, log.row])
    first = (log.time - before > longest).fill_null(True).cast("int64")
    log = log.mutate(first=first)
    number = log["first"].cumsum().over(group_by=log.user, order_by=[log.time, log.row])
    log = log.mutate(user=log.user.cast("string") + "#" + number.cast("string")).drop("first")
    return con.create_table("cut_at_gaps", log, temp=True)


def report_sessions(log: Any, sessions: str | None, report: Report) -> None:
    """Say how many sessions there are, where they are not users."""
    if sessions is None:
        return
    lengths = log.group_by("user").agg(events=log.count())
    alone = count_of(lengths.filter(lengths.events == 1))
    shortest = f", {alone:,} of one item, which ask for nothing but count in training"
    report(f"sessions: {count_of(lengths):,} ({sessions}){shortest if alone else ''}")


def facts_of_test(con: Any, log: Any, source: Source, report: Report) -> dict[str, int]:
    """For dataset.json: how many of the last sequences are test, and items that only they hold."""
    if not source.test_files:
        return {"test_users": 0}
    edge, given = _first_test_row(source), _names(source.test_files)
    ends = {"first": log.row.min(), "last": log.row.max()}
    users, items = (
        con.create_table(f"{column}_ends", log.group_by(column).agg(**ends), temp=True)
        for column in ("user", "item")
    )
    test, mixed, shared, only = (
        value_of(found.sum())
        for found in (
            (users.first >= edge).cast("int64"),
            ((users.first < edge) & (users.last >= edge)).cast("int64"),
            ((items.first < edge) & (items.last >= edge)).cast("int64"),
            (items.first >= edge).cast("int64"),
        )
    )
    if mixed:
        raise InputError(
            f"{source.where} has users called {TEST}…, which is what sequences of {given} are"
            " called; rename them"
        )
    if test in (0, count_of(users)):
        empty = given if test == 0 else source.where
        raise InputError(
            f"nothing is left of {empty}; lower data.min_user_events and data.min_item_events"
        )
    if not shared:
        raise InputError(
            f"no item of {given} is in {source.where}: are their ids written in the same way?"
        )
    events = count_of(log.filter(log.row >= edge))
    report(
        f"test set: {test:,} sequences, {events:,} interactions; {only:,} items occur only there"
    )
    return {"test_users": test, "items_only_in_test": only}


def _first_test_row(source: Source) -> int:
    return len(source.files) << 40


def _names(files: tuple[Path, ...]) -> str:
    return ", ".join(map(str, files))
