"""Sessions against plain walks over the log, and test sets that were given apart."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from recsys.data.cache import open_data
from recsys.data.formats import source_from_path, source_from_table
from recsys.data.prepare import DataConfig, prepare
from recsys.data.sequences import SequenceDataset
from recsys.data.split import SplitConfig, split
from recsys.errors import InputError

Events = list[tuple[object, object, object]]
"""(user, item, time) in file order."""


def csv(path: Path, events: Events, head: str = "user,item,time") -> Path:
    path.write_text(head + "\n" + "".join(f"{u},{i},{t}\n" for u, i, t in events))
    return path


def text(path: Path, lines: str) -> Path:
    path.write_text(lines)
    return path


def made(path: Path, said: list[str] | None = None, **settings: object) -> SequenceDataset:
    said = [] if said is None else said
    config = DataConfig(**settings)
    return prepare(source_from_path(path), path.parent / "out", config, report=said.append)


def sequences(dataset: SequenceDataset) -> list[tuple[object, list[object]]]:
    """(name, raw items) in order of their numbers."""
    raw = dataset.catalogue["item"].to_pylist()
    return [
        (name, [raw[item - 1] for item in dataset[number]])
        for number, name in enumerate(dataset.users.to_pylist())
    ]


MINUTE = 60
VISITS: Events = [
    ("ann", "a", 0),
    ("bob", "x", 10),
    ("ann", "c", 60 * MINUTE + 1),  # a second too late
    ("ann", "b", 30 * MINUTE),  # just in time, and not in order
    ("bob", "y", 11),
    ("ann", "d", 600 * MINUTE),
]
CUT = [("ann#1", ["a", "b"]), ("bob#1", ["x", "y"]), ("ann#2", ["c"]), ("ann#3", ["d"])]


@pytest.mark.parametrize("gap", ["30m", "0.5h"])
def test_only_a_pause_longer_than_the_gap_ends_a_session(tmp_path, gap):
    assert sequences(made(csv(tmp_path / "log.csv", VISITS), sessions=f"gap:{gap}")) == CUT


@pytest.mark.parametrize(
    "written",
    [
        lambda second: (1_700_000_000 + second) * 1_000,
        lambda second: (1_700_000_000 + second) * 1_000_000_000,
        lambda second: f"{1_700_000_000 + second}.0625",
        lambda second: datetime.fromtimestamp(second, UTC).isoformat(),
    ],
    ids=["ms", "ns", "fraction", "date"],
)
def test_gaps_are_measured_in_the_unit_of_the_times(tmp_path, written):
    events = [(user, item, written(second)) for user, item, second in VISITS]
    assert sequences(made(csv(tmp_path / "log.csv", events), sessions="gap:30m")) == CUT


def test_many_sessions_equal_those_of_a_walk_over_the_log(tmp_path):
    random = np.random.default_rng(0)
    users, items = random.integers(0, 40, 6000), random.integers(0, 200, 6000)
    events = list(zip(users, items, random.integers(0, 40_000, 6000), strict=True))
    wanted: dict[str, list[int]] = {}
    for user in np.unique(users):
        number, last = 1, None
        for _, item, time in sorted((e for e in events if e[0] == user), key=lambda e: e[2]):
            number += last is not None and time - last > 600
            wanted.setdefault(f"{user}#{number}", []).append(item)
            last = time
    assert max(map(len, wanted.values())) > 10
    assert len(wanted) > 10 * 40
    path = csv(tmp_path / "log.csv", events)
    assert dict(sequences(made(path, sessions="gap:10m", duplicates="keep"))) == wanted


def test_what_holds_for_users_holds_for_sessions(tmp_path):
    events = [("u", "a", 0), ("u", "a", 1), ("u", "b", 2), ("u", "a", 900), ("u", "a", 999)]
    path, said = csv(tmp_path / "log.csv", [*events, ("v", "b", 5)]), []
    first = made(path, said, sessions="gap:5m", duplicates="first")
    assert sequences(first) == [("u#1", ["a", "b"]), ("u#2", ["a"]), ("v#1", ["b"])]
    assert first.catalogue["count"].to_pylist() == [2, 2]
    assert any(line.startswith("sessions: 3 (gap:5m), 2 of one item") for line in said)
    long = made(path, sessions="gap:5m", min_user_events=3)
    assert sequences(long) == [("u#1", ["a", "a", "b"])]


@pytest.mark.parametrize("sessions", ["column:visit", "visit"])
def test_a_session_column_stands_in_for_the_user(tmp_path, sessions):
    path = tmp_path / "log.csv"
    path.write_text("user,visit,item,time\nu,2,a,5\nu,1,b,1\nv,2,c,3\nu,1,d,2\n")
    assert sequences(made(path, sessions=sessions)) == [(2, ["c", "a"]), (1, ["b", "d"])]


def test_lines_are_sessions_called_by_their_number(tmp_path):
    path = text(tmp_path / "log.txt", "5 3 5\n\n   \n3\n 7 \t5  \n")
    dataset = made(path, sessions="lines")
    assert sequences(dataset) == [(1, [5, 3, 5]), (4, [3]), (5, [7, 5])]
    assert dataset.timestamps is None


def test_lines_of_several_parts_are_called_by_part_and_number(tmp_path):
    (tmp_path / "parts").mkdir()
    text(tmp_path / "parts" / "b.txt", "c d\n")
    text(tmp_path / "parts" / "a.txt", "\na b\n")
    found = sequences(made(tmp_path / "parts", sessions="lines"))
    assert found == [("a.txt:2", ["a", "b"]), ("b.txt:1", ["c", "d"])]


LOG: Events = [("u1", "a", 1), ("u1", "b", 2), ("u2", "b", 3), ("u2", "c", 4)]
TEST: Events = [("u1", "c", 5), ("u9", "z", 1), ("u1", "y", 6), ("u9", "a", 2)]


def test_a_given_test_set_shares_the_vocabulary_and_stands_last(tmp_path):
    path, said = csv(tmp_path / "log.csv", LOG), []
    given = csv(tmp_path / "held_out.csv", TEST)
    dataset = made(path, said, test=str(given))
    assert sequences(dataset) == [
        ("u1", ["a", "b"]),
        ("u2", ["b", "c"]),
        ("test:u1", ["c", "y"]),  # apart from the u1 of the log
        ("test:u9", ["z", "a"]),
    ]
    assert dataset.test_users == 2
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (facts["test_users"], facts["items_only_in_test"]) == (2, 2)
    assert said[-1] == "test set: 2 sequences, 4 interactions; 2 items occur only there"


def test_gaps_and_lines_cut_a_given_test_set_too(tmp_path):
    path, given = csv(tmp_path / "log.csv", LOG), csv(tmp_path / "held_out.csv", TEST)
    names = made(path, test=str(given), sessions="gap:1s").users.to_pylist()
    assert names == ["u1#1", "u2#1", "test:u1#1", "test:u9#1"]
    path, given = text(tmp_path / "log.txt", "1 2\n2 3\n"), text(tmp_path / "test.txt", "\n3 1\n")
    dataset = made(path, test=str(given), sessions="lines")
    assert sequences(dataset) == [("1", [1, 2]), ("2", [2, 3]), ("test:2", [3, 1])]
    assert dataset.test_users == 1


def test_what_is_test_is_part_of_the_fingerprint(tmp_path):
    lines = ["1 2\n", "3 1\n", "1 2\n", "3 1\n"]
    found = {}
    for train in (2, 3, 4):
        path = text(tmp_path / "log.txt", "".join(lines[:train]))
        test = str(text(tmp_path / "test.txt", "".join(lines[train:]))) if train < 4 else None
        dataset = made(path, sessions="lines", test=test)
        assert [items for _, items in sequences(dataset)] == [[1, 2], [3, 1]] * 2
        found[dataset.fingerprint] = dataset.test_users
    assert list(found.values()) == [2, 1, 0]


def test_the_cache_tells_test_sets_apart_by_what_is_in_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    path, given = csv(tmp_path / "log.csv", LOG), csv(tmp_path / "held_out.csv", TEST)
    config, said = DataConfig(test=str(given)), []
    _, first = open_data(path, config, said.append)
    assert open_data(path, config, said.append)[1] == first
    csv(given, TEST[:3])
    dataset, other = open_data(path, config, said.append)
    assert other != first
    assert len(dataset.items) == 7


BAD_TESTS = {
    "a log in memory": (None, TEST, "needs a log in files"),
    "another format": ("held_out.jsonl", TEST, r"held_out\.jsonl is read as json, .* as csv"),
    "nothing in it": ("held_out.csv", [], r"held_out\.csv is empty: it has no interactions"),
    "ids of another kind": (
        "held_out.csv",
        [("u7", "A", 1), ("u7", "B", 2)],
        r"no item of .*held_out\.csv is in .*log\.csv",
    ),
    "only short sequences": (
        "held_out.csv",
        [("u7", "a", 1)],
        r"nothing is left of .*held_out\.csv; lower data\.min_user_events",
    ),
}


@pytest.mark.parametrize("case", BAD_TESTS)
def test_a_test_set_that_cannot_be_one_is_refused(tmp_path, case):
    name, events, message = BAD_TESTS[case]
    path = csv(tmp_path / "log.csv", LOG)
    config = DataConfig(test=str(csv(tmp_path / (name or "held_out.csv"), events)))
    config = DataConfig(test=config.test, min_user_events=2)
    source = source_from_path(path)
    if name is None:
        import pandas as pd

        source = source_from_table(pd.read_csv(path), config.columns, "frame")
    with pytest.raises(InputError, match=message):
        prepare(source, tmp_path / "out", config, report=print)
    assert not (tmp_path / "out").exists()


def test_a_log_that_uses_the_names_of_test_sequences_is_refused(tmp_path):
    path = csv(tmp_path / "log.csv", [*LOG, ("test:u9", "a", 0)])
    with pytest.raises(InputError, match="has users called test:"):
        made(path, test=str(csv(tmp_path / "held_out.csv", TEST)))


@pytest.mark.parametrize("count", [-1, 4, "2", None])
def test_a_folder_with_an_impossible_number_of_test_sequences_is_damaged(tmp_path, count):
    made(csv(tmp_path / "log.csv", LOG), test=str(csv(tmp_path / "held_out.csv", TEST)))
    file = tmp_path / "out" / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "test_users": count}))
    with pytest.raises(InputError, match="is damaged: test_users is"):
        SequenceDataset.load(tmp_path / "out")


PUBLISHED = {
    # sessions, clicks and prefixes of train and test, items together, items only in test
    "yoochoose1_64": ((116_167, 486_026, 369_859), (15_324, 71_222, 55_898), 17_745, 369),
    "diginetica": ((186_670, 906_140, 719_470), (15_963, 76_821, 60_858), 43_097, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_session_sets_have_their_published_counts(real_data, tmp_path, name):
    files = [real_data / "sessions" / f"{name}_{part}.txt.gz" for part in ("train", "test")]
    config = DataConfig(sessions="lines", test=str(files[1]))
    dataset = prepare(source_from_path(files[0]), tmp_path / "out", config, report=print)
    parts = split(dataset, SplitConfig(kind="sessions"))
    refit, test, items, only = PUBLISHED[name]
    clicks = int((parts.refit.end - parts.refit.start).sum())
    assert (len(parts.refit), clicks, clicks - len(parts.refit)) == refit
    assert (dataset.test_users, len(dataset.items) - clicks, len(parts.test)) == test
    assert (dataset.num_items, dataset.info["items_only_in_test"]) == (items, only)
    lines = "".join(gzip.decompress(file.read_bytes()).decode() for file in files).splitlines()
    assert [found for _, found in sequences(dataset)] == [[*map(int, x.split())] for x in lines]
