"""Preparing logs: what comes out of good ones, and what is said of bad ones."""

import errno
import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recsys.data import prepare as prepare_module
from recsys.data.formats import source_from_path, source_from_table
from recsys.data.interactions import Columns
from recsys.data.prepare import DataConfig, prepare
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError, WorkError


def made(path: Path, *, columns: Columns = Columns(), **settings) -> SequenceDataset:
    out = path.parent / "prepared"
    return prepare(
        source_from_path(path, columns), out, DataConfig(**settings), report=lambda text: None
    )


def histories(dataset: SequenceDataset) -> dict:
    raw = dataset.catalogue["item"].to_pylist()
    return {
        user: [raw[item - 1] for item in dataset[number]]
        for number, user in enumerate(dataset.users.to_pylist())
    }


def written(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


ROWS = [("u2", "b", 3), ("u1", "a", 1), ("u2", "a", 1), ("u1", "c", 2), ("u2", "c", 1)]
WANTED = {"u2": ["a", "c", "b"], "u1": ["a", "c"]}


def test_rows_are_sorted_by_time_and_equal_times_keep_file_order(tmp_path):
    text = "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in ROWS)
    dataset = made(written(tmp_path / "log.csv", text))
    assert histories(dataset) == WANTED
    assert dataset.users.to_pylist() == ["u2", "u1"]
    assert dataset.catalogue["item"].to_pylist() == ["b", "a", "c"]
    assert dataset.catalogue["count"].to_pylist() == [1, 2, 2]
    assert dataset.timestamps.tolist() == [1, 1, 3, 1, 2]
    assert dataset.info["time_unit"] == "s"


@pytest.mark.parametrize(
    "name", ["log.tsv", "log.csv.gz", "log.jsonl", "log.json.gz", "log.parquet", "parts"]
)
def test_every_format_gives_the_same_data(tmp_path, name):
    frame = pd.DataFrame(ROWS, columns=["user_id", "item_id", "timestamp"])
    path = tmp_path / name
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    elif name == "parts":
        path.mkdir()
        frame[:2].to_csv(path / "a.csv", index=False)
        frame[2:].to_csv(path / "b.csv", index=False)
    elif "json" in name:
        written(path, frame.to_json(orient="records", lines=True))
    else:
        written(path, frame.to_csv(index=False, sep="\t" if "tsv" in name else ","))
    assert histories(made(path)) == WANTED


def test_a_data_frame_is_a_log(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["who", "what", "when"])
    source = source_from_table(frame, Columns("who", "what", "when"), "frame")
    assert histories(prepare(source, tmp_path / "out", report=print)) == WANTED


def test_sequence_text_keeps_its_order_and_appends_repeated_users(tmp_path):
    dataset = made(written(tmp_path / "log.txt", "7 3 1 2\n9 1\n\n7 5 3\n"))
    assert histories(dataset) == {7: [3, 1, 2, 5, 3], 9: [1]}
    assert dataset.timestamps is None
    assert dataset.info["time_unit"] is None


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["1", "20", "3"], [1, 20, 3]),
        (["007", "7", "8"], ["007", "7", "8"]),
        (["1", "x", "3"], ["1", "x", "3"]),
        (["1.5", "2", "é"], ["1.5", "2", "é"]),
    ],
)
def test_ids_come_back_as_they_were(tmp_path, values, wanted):
    text = "user,item\n" + "".join(f"u,{value}\n" for value in values)
    assert made(written(tmp_path / "log.csv", text)).catalogue["item"].to_pylist() == wanted


def test_mixed_ids_in_json_become_text_and_are_reported(tmp_path):
    path = written(tmp_path / "log.jsonl", '{"user":1,"item":1}\n{"user":1,"item":"a"}\n')
    said: list[str] = []
    dataset = prepare(source_from_path(path), tmp_path / "out", report=said.append)
    assert dataset.catalogue["item"].to_pylist() == ["1", "a"]
    assert any("mixed" in text for text in said)


def test_records_need_not_all_have_the_times_that_some_have(tmp_path):
    lines = ['{"user": 1, "item": 1}', '{"user": 1, "item": 2, "time": 5}']
    with pytest.raises(InputError, match="1 rows have no time"):
        made(written(tmp_path / "log.jsonl", "\n".join(lines)))


def test_a_quoted_name_may_hold_the_delimiter(tmp_path):
    text = '"user","item","price, in euros","time"\nu,a,1,5\nu,b,2,6\n'
    assert histories(made(written(tmp_path / "log.csv", text))) == {"u": ["a", "b"]}


@pytest.mark.parametrize("name", ["log.csv.gz", "log.jsonl.gz"])
def test_a_compressed_log_with_one_bit_wrong_is_refused(tmp_path, name):
    random = np.random.default_rng(0)
    rows = [(f"u{n // 9}", f"i{random.integers(10**6)}") for n in range(900)]
    lines = [json.dumps({"user": u, "item": i}) for u, i in rows]
    if name == "log.csv.gz":
        lines = ["user,item", *(",".join(row) for row in rows)]
    file = written(tmp_path / name, "\n".join(lines))
    whole = file.read_bytes()
    for place in range(20, len(whole), len(whole) // 12):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        with pytest.raises(InputError, match="cannot be read"):
            made(file)


@pytest.mark.parametrize(
    ("times", "stored", "unit"),
    [
        (["1700000000", "1700000005"], [1700000000, 1700000005], "s"),
        (["1700000000000", "1700000000001"], [1700000000000, 1700000000001], "ms"),
        (["8.8e8", "8.9e8"], [880000000, 890000000], "s"),
        (["1.5", "2.25"], [1500000, 2250000], "us"),
        (["1700000002000.5", "1700000004000"], [1700000002000500, 1700000004000000], "us"),
        (
            ["2010-10-19T23:55:27Z", "2010-10-20T00:00:00Z"],
            [1287532527000000, 1287532800000000],
            "us",
        ),
        (["1969-12-31T23:59:59.75", "1970-01-01 00:00:00.6"], [-250000, 600000], "us"),
        (["2020-01-02", "2020-01-03"], [1577923200000000, 1578009600000000], "us"),
    ],
)
def test_times_are_numbers_or_iso_dates(tmp_path, times, stored, unit):
    text = "user,item,time\n" + "".join(f"u,i{n},{t}\n" for n, t in enumerate(times))
    dataset = made(written(tmp_path / "log.csv", text))
    assert dataset.timestamps.tolist() == stored
    assert dataset.info["time_unit"] == unit


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ("keep", ["a", "a", "a", "b", "a"]),
        ("exact", ["a", "a", "b", "a"]),
        ("first", ["a", "b"]),
        ("last", ["b", "a"]),
        ("consecutive", ["a", "b", "a"]),
    ],
)
def test_duplicates_are_dropped_as_asked(tmp_path, which, wanted):
    rows = [("a", 1), ("a", 1), ("a", 2), ("b", 3), ("a", 4)]
    text = "user,item,time\n" + "".join(f"u,{i},{t}\n" for i, t in rows)
    dataset = made(written(tmp_path / "log.csv", text), duplicates=which)
    assert histories(dataset) == {"u": wanted}
    assert dataset.info["duplicates_dropped"] == 5 - len(wanted)


def test_k_core_goes_on_until_users_and_items_both_have_enough(tmp_path):
    # Dropping item c leaves u3 one short, dropping u3 leaves item d one short, and so on.
    rows = "u1 a b\nu2 a b\nu3 a d c\nu4 d\n"
    dataset = made(written(tmp_path / "log.txt", rows), min_user_events=2, min_item_events=2)
    assert histories(dataset) == {"u1": ["a", "b"], "u2": ["a", "b"]}
    with pytest.raises(InputError, match="nothing is left of 8 interactions"):
        made(tmp_path / "log.txt", min_user_events=4, min_item_events=2)


def test_preparing_twice_gives_the_same_fingerprint(tmp_path):
    path = written(tmp_path / "log.txt", "1 5 6 7\n2 6 5\n")
    assert made(path).fingerprint == made(path).fingerprint


BAD = {
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"user,item,time\n", "is empty: it has no interactions"),
    "empty.txt": (b"\n", "is empty"),
    "noitem.csv": (b"user,thing\nu,1\n", "--item-column"),
    "null.csv": (
        b"user,item,time\nu,a,1\nu,,2\nv,,2\n",
        "2 rows have no item, the first in line 3",
    ),
    "time.csv": (b"user,item,time\nu,a,1\nu,b,soon\n", "'soon' in line 3"),
    "fields.csv": (b"user,item,time\nu,a,1\nu,b\n", "fields.csv cannot be read"),
    "latin.csv": (b"user,item\nu,\xe9\n", "cannot be read"),
    "cut.csv.gz": (
        gzip.compress(b"user,item\n" + b"u,a\n" * 9000)[:60],
        "cut.csv.gz cannot be read",
    ),
    "notgz.csv.gz": (b"user,item\nu,a\n", "notgz.csv.gz"),
    "broken.jsonl": (b'{"user":1,"item":2}\n{"user":1,\n', "broken.jsonl cannot be read"),
    "notjson.json": (b"user,item\n", "line 1 is not JSON"),
    "fake.parquet": (b"PAR1 nothing", "fake.parquet"),
    "odd.xyz": (b"a b", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_and_leave_nothing_behind(tmp_path, name):
    data, message = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        made(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_file_or_column_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        source_from_path(tmp_path / "none.csv")
    path = written(tmp_path / "log.csv", "user,item\nu,a\n")
    with pytest.raises(InputError, match="no column 'itme'; did you mean 'item'"):
        made(path, columns=Columns(item="itme"))


def test_a_full_disk_is_reported_and_loses_nothing(tmp_path, monkeypatch):
    path = written(tmp_path / "log.txt", "1 5 6 7\n")
    before = made(path).fingerprint

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_sequences", full)
    with pytest.raises(WorkError, match="no space left"):
        made(path)
    assert SequenceDataset.load(tmp_path / "prepared").fingerprint == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.txt", "prepared"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a prepared data set"):
        made(written(tmp_path / "log.txt", "1 5 6 7\n"))
    assert (tmp_path / "prepared" / "thesis.txt").read_text() == "mine"


def test_spark_is_refused_honestly(tmp_path):
    source = source_from_path(written(tmp_path / "log.txt", "1 5 6 7\n"))
    with pytest.raises(InputError, match="not in this version"):
        prepare(source, tmp_path / "out", engine="spark", report=print)


def test_a_large_log_equals_what_pandas_makes_of_it(tmp_path):
    random = np.random.default_rng(0)
    size = 200_000
    frame = pd.DataFrame(
        {
            "user": random.integers(0, 9000, size),
            "item": random.integers(0, 3000, size),
            "time": np.arange(size),
        }
    )
    frame.to_parquet(tmp_path / "log.parquet")
    dataset = made(tmp_path / "log.parquet")
    wanted = (
        frame.sort_values(["user", "time"], kind="stable")
        .groupby("user")["item"]
        .agg(list)
        .to_dict()
    )
    assert histories(dataset) == wanted


@pytest.mark.parametrize(
    ("file", "users", "items", "interactions"),
    [
        ("s3rec/Beauty.txt.gz", 22_363, 12_101, 198_502),
        ("ml-latest-small/ratings.csv.gz", 671, 9_066, 100_004),
        ("ml-100k/ml-100k.inter.gz", 943, 1_682, 100_000),
    ],
)
def test_real_logs_have_their_published_counts(
    real_data, tmp_path, file, users, items, interactions
):
    out = prepare(source_from_path(real_data / file), tmp_path / "out", report=lambda text: None)
    assert (len(out), out.num_items, len(out.items)) == (users, items, interactions)
    if file.endswith(".txt.gz"):
        with gzip.open(real_data / file, "rt") as lines:
            wanted = {int(u): list(map(int, i)) for u, *i in map(str.split, lines)}
        assert histories(out) == wanted


def test_check_ins_with_iso_times_can_be_read_by_naming_columns(real_data, tmp_path):
    packed = real_data / "gowalla-50k/Gowalla_totalCheckins50000.txt.gz"
    data = gzip.decompress(packed.read_bytes())
    path = tmp_path / "gowalla.csv"
    path.write_bytes(b"user\ttime\tlat\tlon\tplace\n" + data)
    dataset = made(path, columns=Columns("user", "place", "time"), duplicates="keep")
    assert (len(dataset), dataset.num_items, len(dataset.items)) == (171, 23_361, 50_000)
    assert json.loads((tmp_path / "prepared/dataset.json").read_text())["time_unit"] == "us"


def test_a_named_item_column_leaves_the_time_to_be_guessed(tmp_path):
    text = "user,film,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in ROWS)
    path, said = written(tmp_path / "log.csv", text), []
    columns = Columns("user", "film")
    dataset = prepare(source_from_path(path, columns), tmp_path / "out", report=said.append)
    assert histories(dataset) == WANTED
    assert "time = 'time' (guessed" in said[0]


def test_times_with_an_offset_are_moments(tmp_path):
    rows = (
        "u,first,2020-10-25T02:30:00+02:00\n"
        "u,second,2020-10-25T02:10:00+01:00\n"
        "u,third,2020-10-25T01:30:00Z\n"
        "u,fourth,2020-10-25 02:30:00.25\n"
    )
    dataset = made(written(tmp_path / "log.csv", "user,item,time\n" + rows))
    assert histories(dataset) == {"u": ["first", "second", "third", "fourth"]}
    minutes = [(t - 1_603_584_000_000_000) / 60e6 for t in dataset.timestamps.tolist()]
    assert minutes == [30, 70, 90, 150 + 0.25 / 60]


@pytest.mark.parametrize("name", ["log[1].csv", "l*g.csv", "user=9/log?.csv"])
def test_a_file_is_read_whatever_its_name_means_to_a_reader(tmp_path, name):
    text = "user,item\nu,a\nv,b\n"
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for other in ("log1.csv", "lag.csv", "logs.csv"):
        written(path.parent / other, "user,item\nx,y\n")
    assert histories(made(written(path, text))) == {"u": ["a"], "v": ["b"]}


@pytest.mark.parametrize(
    ("column", "values", "wanted"),
    [
        ("item", pa.array([2**63 + 1, 2**64 - 1], pa.uint64()), [str(2**63 + 1), str(2**64 - 1)]),
        ("item", pa.array([1.0, 1e30]), ["1.0", "1e+30"]),
        ("item", pa.array([1, 2], pa.uint64()), [1, 2]),
        ("time", pa.array([1.7e15 + 0.25, 1.6e15]), None),
    ],
)
def test_numbers_beyond_what_is_kept_are_kept_as_texts_or_rounded(tmp_path, column, values, wanted):
    table = pa.table({"user": [1, 1], "item": [1, 2]} | {column: values})
    dataset = prepare(source_from_table(table, Columns(), "log"), tmp_path / "out", report=print)
    if wanted is None:
        assert dataset.timestamps.tolist() == [1_600_000_000_000_000, 1_700_000_000_000_000]
        assert dataset.info["time_unit"] == "us"
    else:
        assert dataset.catalogue["item"].to_pylist() == wanted


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user": [1.0, float("nan")], "item": [1, 2]}, "1 rows have no user, the first in row 2"),
        ({"user": [1, 2], "item": [float("inf"), 2.0]}, "1 rows have no item, the first in row 1"),
        ({"user": [1, 2], "item": [1, 2], "time": ["2020-01-01", "infinity"]}, "'infinity' in row"),
        (
            {"user": [1, 2], "item": [1, 2], "time": pa.array([2**63, 1], pa.uint64())},
            "neither a number nor an ISO date",
        ),
        ({"user": [1], "item": [1], "time": pa.array([1], pa.duration("s"))}, "'time' of log"),
    ],
)
def test_values_that_are_no_ids_or_times_are_named(tmp_path, table, message):
    source = source_from_table(pa.table(table), Columns(), "log")
    with pytest.raises(InputError, match=message):
        prepare(source, tmp_path / "out", report=print)


@pytest.mark.parametrize("items", [["a", 2, 3], [1, "a", 3]])
def test_ids_of_several_types_in_a_data_frame_are_texts(tmp_path, items):
    frame = pd.DataFrame({"user": [1, 1, 1], "item": items})
    source = source_from_table(frame, Columns(), "frame")
    dataset = prepare(source, tmp_path / "out", report=print)
    assert dataset.catalogue["item"].to_pylist() == list(map(str, items))


def test_a_data_frame_with_columns_of_one_name_is_refused():
    frame = pd.DataFrame([[1, 2, 3]], columns=["user", "item", "item"])
    with pytest.raises(InputError, match="columns of one name"):
        source_from_table(frame, Columns(), "frame")


def test_a_log_that_is_called_like_a_data_set_is_not_replaced(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    text = '{"user":1,"item":1}\n{"user":1,"item":2}\n'
    path = written(folder / "dataset.json", text)
    with pytest.raises(InputError, match="is not a prepared data set"):
        prepare(source_from_path(path), folder, report=print)
    assert path.read_text() == text
