"""The journal: nothing acknowledged is lost, nothing half-written is taken."""

import json
import os
import signal
import subprocess
import sys
import zlib
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import InputError, WorkError
from recsys.retrieval.journal import Changes, Journal, as_read

CHANGES = [
    {"upsert": [{"item": "a", "title": "first"}, {"item": 7, "title": "ümlaut\n"}]},
    {"remove": ["a", "b"]},
    {"unavailable": [7, "c"]},
    {"upsert": [{"item": "a", "price": 3}]},
    {"available": [7]},
]


def written(path: Path) -> None:
    journal = Journal(path)
    for change in CHANGES:
        journal.append(change)
    journal.close()


def read(path: Path) -> tuple[dict, list, list]:
    journal = Journal(path)
    changes = journal.changes
    journal.close()
    return changes.rows, list(changes.removed), list(changes.unavailable)


WHOLE = (
    {7: {"item": 7, "title": "ümlaut\n"}, "a": {"item": "a", "title": "first", "price": 3}},
    ["b"],
    ["c"],
)


def test_what_was_written_is_read_back_as_what_it_comes_to(tmp_path):
    written(tmp_path / "journal")
    assert read(tmp_path / "journal") == WHOLE


def test_compacting_changes_nothing_but_the_length(tmp_path):
    path = tmp_path / "journal"
    written(path)
    before = path.stat().st_size
    journal = Journal(path)
    journal.compact()
    journal.append({"remove": ["d"]})
    journal.close()
    assert read(path) == (WHOLE[0], ["b", "d"], ["c"])
    assert path.stat().st_size < before


def test_a_write_that_was_cut_anywhere_is_as_if_it_had_not_begun(tmp_path):
    path = tmp_path / "journal"
    written(path)
    data = path.read_bytes()
    last = data[:-1].rfind(b"\n") + 1
    for end in range(last, len(data)):
        path.write_bytes(data[:end])
        rows, removed, unavailable = read(path)
        assert (rows, removed, unavailable) == (WHOLE[0], ["b"], [7, "c"])
        assert path.read_bytes() == data[:last]


def test_a_damaged_line_before_the_last_is_named_and_nothing_is_changed(tmp_path):
    path = tmp_path / "journal"
    written(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"first")] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"journal line 2 is damaged"):
        Journal(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("text", ["milk\n", "milk", "milk\nbread\n", '{"recsys_journal": 1}\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path, text: str):
    path = tmp_path / "shopping.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="is no journal of a catalogue"):
        Journal(path)
    assert path.read_text() == text


def test_two_processes_do_not_write_one_journal(tmp_path):
    journal = Journal(tmp_path / "journal")
    with pytest.raises(InputError, match="open in another process"):
        Journal(tmp_path / "journal")
    journal.close()
    Journal(tmp_path / "journal").close()


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append(CHANGES[0])
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match="could not be written: No space left"):
        journal.append(CHANGES[1])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not journal.changes.removed
    journal.append({"remove": ["z"]})
    journal.close()
    assert read(path)[1] == ["z"]


def test_a_line_is_a_checksum_and_json(tmp_path):
    written(tmp_path / "journal")
    for line in (tmp_path / "journal").read_bytes().splitlines():
        checksum, text = line.split(b" ", 1)
        assert int(checksum, 16) == zlib.crc32(text)
        json.loads(text)


def test_a_change_is_taken_in_the_form_in_which_it_is_read_back():
    moment = datetime(2024, 5, 31, 12, 1, 2, 345678)
    row = {"item": "a", "day": moment.date(), "at": moment, "price": Decimal("3.50"), "size": 0.5}
    read = {**row, "day": "2024-05-31", "at": "2024-05-31 12:01:02.345678", "price": "3.50"}
    assert as_read({"upsert": [row | {"size": np.float16(0.5)}]}) == {"upsert": [read]}
    for value in (b"ab", float("inf"), "\ud800", timedelta(1)):
        with pytest.raises(InputError, match="cannot be written to the journal"):
            as_read({"upsert": [{"item": "a", "x": value}]})


def test_a_column_that_a_catalogue_lacks_holds_what_was_said_last(tmp_path):
    changes = Changes()
    for row in ({"item": "a", "title": "x", "note": "n"}, {"item": "a", "title": "y"}):
        changes.take({"upsert": [row]})
    shortest = Changes()
    for change in changes.shortest():
        shortest.take(change)
    for some in (changes, shortest):
        assert some.rows_for(["item", "title"]) == [{"item": "a", "title": "y"}]
        assert some.rows_for(["item", "note"]) == [{"item": "a", "title": "y", "note": "n"}]


def test_a_process_killed_while_it_writes_loses_nothing_that_it_acknowledged(tmp_path):
    code = """
import sys
from recsys.retrieval.journal import Changes, Journal, as_read
journal = Journal(sys.argv[1])
for number in range(1_000_000):
    journal.append({"remove": [number]})
    print(number, flush=True)
"""
    path = tmp_path / "journal"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    process.stdout.close()
    removed = read(path)[1]
    assert removed[: len(acknowledged)] == acknowledged
    assert len(removed) - len(acknowledged) <= 1
