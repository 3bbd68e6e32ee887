"""Reading logs: which rows a file, a folder of parts or a table has."""

import gzip
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.formats import source_from_path, source_from_table
from recsys.data.interactions import Columns
from recsys.data.prepare import DataConfig, prepare
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError


def quiet(text: str) -> None:
    """Nobody is told."""


# Pandas 3 keeps what is missing where it makes texts of a column. Without texts of its own it does
# as pandas 2, and warns that pandas 4 will not.
@pytest.mark.skipif(pd.__version__ >= "4", reason="always has texts of its own")
@pytest.mark.filterwarnings("ignore:.*future.infer_string")
@pytest.mark.parametrize("own_texts", [True, False])
def test_what_is_missing_among_mixed_ids_is_no_id(tmp_path: Path, own_texts: bool):
    users = pd.Series([1, "a", None, float("nan"), pd.NA], dtype=object)
    with pd.option_context("future.infer_string", own_texts):
        frame = pd.DataFrame({"user": users, "item": list("xyzwv")})
        source = source_from_table(frame, Columns(), "frame")
    assert source.table is not None
    assert source.table["user"].to_pylist() == ["1", "a", None, None, None]
    assert source.table["item"].to_pylist() == list("xyzwv")
    assert frame["user"].tolist()[:3] == [1, "a", None]
    with pytest.raises(InputError, match="3 rows have no user, the first in row 3"):
        prepare(source, tmp_path / "out", report=quiet)


def test_a_data_frame_that_arrow_cannot_hold_is_refused():
    frame = pd.DataFrame({"user": pd.Series([1, "a"], dtype="category"), "item": [1, 2]})
    with pytest.raises(InputError, match="the DataFrame cannot be read: "):
        source_from_table(frame, Columns(), "frame")


def made(path: Path, said: list[str] | None = None, **settings: str) -> SequenceDataset:
    report = quiet if said is None else said.append
    return prepare(
        source_from_path(path), path.parent / "out", DataConfig(**settings), report=report
    )


def histories(dataset: SequenceDataset) -> dict:
    raw = dataset.catalogue["item"].to_pylist()
    return {
        user: [raw[item - 1] for item in dataset[number]]
        for number, user in enumerate(dataset.users.to_pylist())
    }


def test_a_quote_between_tabs_is_a_character_like_others(tmp_path: Path):
    log = tmp_path / "log.tsv"
    log.write_text('user\titem\tsize "in\ttime\nu1\ta\t"A\t1\nu1\tb\tB"\t2\nu1\t"c"\tC\t3\n')
    assert histories(made(log)) == {"u1": ["a", "b", '"c"']}


def test_tabs_under_quoted_names_are_read_with_quotes(tmp_path: Path):
    log = tmp_path / "log.tsv"
    log.write_text('"user"\t"item"\t"title"\n"u1"\t"a"\t"A\tor ""B"""\n"u1"\t"b"\t"C"\n')
    assert histories(made(log)) == {"u1": ["a", "b"]}


def test_tabs_are_read_with_quotes_where_a_writer_set_them_as_needed(tmp_path: Path):
    items = ['7" disk', '5" nail', "b", "tab\there"]
    frame = pd.DataFrame({"user": ["u"] * 4, "item": items, "time": [1, 2, 3, 4]})
    frame.to_csv(tmp_path / "log.tsv", sep="\t", index=False)
    assert '"7"" disk"' in (tmp_path / "log.tsv").read_text()
    assert histories(made(tmp_path / "log.tsv")) == {"u": items}


@pytest.mark.parametrize("blank", ["\n", "\r\n \r\n", "\n\n\n", "\ufeff\n"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_blank_lines_before_the_names_of_columns_are_none(tmp_path: Path, blank: str, ending: str):
    end = "\r\n" if "\r" in blank else "\n"
    text = blank + end.join(["user,item,time", "u1,a,1", "u1,b,2", ""])
    log = tmp_path / f"log.csv{ending}"
    log.write_bytes(gzip.compress(text.encode()) if ending else text.encode())
    dataset = made(log)
    assert histories(dataset) == {"u1": ["a", "b"]}
    assert dataset.timestamps is not None
    assert dataset.timestamps.tolist() == [1, 2]


def test_a_broken_record_is_named_by_its_line_behind_blank_ones(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text("\n\nnothing\n")
    with pytest.raises(InputError, match=r"log\.jsonl, line 3 is not JSON"):
        made(log)


def test_lines_that_end_as_on_old_machines_are_refused(tmp_path: Path):
    log = tmp_path / "log.csv"
    log.write_bytes(b"user,item\ru1,a\ru1,b\r")
    with pytest.raises(InputError, match=r"log\.csv: the first line must name each column once"):
        made(log)


def parts(folder: Path, *tables: dict) -> Path:
    """Parquet files in order, a column as a list or an Arrow array."""
    folder.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(pa.table(table), folder / f"{number}.parquet")
    return folder


def test_a_decimal_of_one_part_is_the_whole_number_of_another(tmp_path: Path):
    parts = [[Decimal("1.00"), Decimal("2.50")], [1, 2]]
    (tmp_path / "log").mkdir()
    for number, items in enumerate(parts):
        table = pa.table({"user": ["u", "v"], "item": items})
        pq.write_table(table, tmp_path / "log" / f"{number}.parquet")
    assert histories(made(tmp_path / "log")) == {"u": ["1", "1"], "v": ["2.50", "2"]}


def test_a_log_may_have_very_many_parts(tmp_path: Path):
    folder = tmp_path / "log"
    folder.mkdir()
    for number in range(100):
        text = f"user,item,time\nu{number % 2},i{number},5\nu{number % 2},j{number},5\n"
        (folder / f"{number:03}.csv").write_text(text)
    wanted = {f"u{u}": [f"{x}{n}" for n in range(u, 100, 2) for x in "ij"] for u in range(2)}
    assert histories(made(folder)) == wanted


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ([pa.array([1], pa.int32()), pa.array([1], pa.int64()), pa.array([2], pa.uint8())], [1, 2]),
        ([pa.array([1]), pa.array(["1"]), pa.array(["x"])], ["1", "x"]),
        ([pa.array([1.0]), pa.array([1]), pa.array([2.5])], ["1", "2.5"]),
        ([pa.array(["a"], pa.large_string()), pa.array(["a"]), pa.array(["b"])], ["a", "b"]),
    ],
    ids=["widths", "text", "fractions", "texts"],
)
def test_ids_of_parts_of_several_types_are_of_one(tmp_path: Path, columns: list, wanted: list):
    tables = ({"user": [7], "item": column, "time": [9 - n]} for n, column in enumerate(columns))
    dataset = made(parts(tmp_path / "log", *tables))
    assert dataset.catalogue["item"].to_pylist() == wanted
    assert histories(dataset) == {7: [wanted[1], wanted[0], wanted[0]]}


def test_times_of_parts_of_several_types_are_of_one(tmp_path: Path):
    columns = [
        pa.array([3], pa.int32()),
        pa.array(["2"]),
        pa.array([1.0]),
        pa.array([0], pa.int64()),
    ]
    tables = ({"user": [7], "item": [n], "time": column} for n, column in enumerate(columns))
    dataset = made(parts(tmp_path / "log", *tables))
    assert dataset.timestamps is not None
    assert dataset.timestamps.tolist() == [0, 1, 2, 3]
    assert histories(dataset) == {7: [3, 2, 1, 0]}


def test_dates_of_parts_of_several_types_are_of_one(tmp_path: Path):
    days = ["2020-01-04", "2020-01-03", "2020-01-02T00:00:00Z", "2020-01-01"]
    kinds = [pa.timestamp("ms"), pa.date32(), pa.timestamp("us", "UTC"), pa.string()]
    columns = [pa.array([day]).cast(kind) for day, kind in zip(days, kinds, strict=True)]
    tables = ({"user": [7], "item": [n], "time": column} for n, column in enumerate(columns))
    dataset = made(parts(tmp_path / "log", *tables))
    assert dataset.timestamps is not None
    day = 86_400_000_000
    first = 1_577_836_800_000_000
    assert dataset.timestamps.tolist() == [first, first + day, first + 2 * day, first + 3 * day]
    assert histories(dataset) == {7: [3, 2, 1, 0]}


@pytest.mark.parametrize("timed", [0, 1, 2])
def test_a_part_without_the_times_that_another_has_is_named(tmp_path: Path, timed: int):
    folder = tmp_path / "log"
    folder.mkdir()
    for number in range(3):
        text = "user,item,time\nu,a,1\n" if number == timed else "user,item\nu,a\n"
        (folder / f"{number}.csv").write_text(text)
    without = 1 if timed == 0 else 0
    message = rf"{without}\.csv has no column of times, .*{timed}\.csv has one"
    with pytest.raises(InputError, match=message):
        made(folder)


def test_a_test_set_without_the_times_of_its_log_is_named(tmp_path: Path):
    log, given = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    log.write_text('{"user": 1, "item": 2, "time": 3}\n{"user": 1, "item": 4, "time": 5}\n')
    given.write_text('{"user": 1, "item": 2}\n{"user": 1, "item": 4}\n')
    with pytest.raises(InputError, match=r"b\.jsonl has no column of times, .*a\.jsonl has one"):
        made(log, test=str(given))
    assert made(given, test=str(given)).test_users == 1


def test_what_is_no_number_in_a_part_is_missing_in_the_log(tmp_path: Path):
    folder = parts(
        tmp_path / "log",
        {"user": ["u"], "item": [1]},
        {"user": ["u", "u"], "item": [float("nan"), float("inf")]},
    )
    with pytest.raises(InputError, match="2 rows have no item"):
        made(folder)


def test_an_id_of_a_part_that_no_number_holds_is_refused(tmp_path: Path):
    large = pa.array([2**64 - 1], pa.uint64())
    folder = parts(tmp_path / "log", {"user": [1], "item": [1]}, {"user": [1], "item": large})
    with pytest.raises(InputError, match=r"1\.parquet cannot be read: .*out of range"):
        made(folder)


@pytest.mark.parametrize("path", ["..", ".", "up\\down.csv", "..csv", "plain.csv"])
def test_no_name_leads_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    folder = tmp_path / "shop" / "logs"
    folder.mkdir(parents=True)
    for place in {folder / path, folder / ("../a.csv" if path == ".." else "a.csv")}:
        if not place.is_dir():
            place.write_text("user,item\nu,a\nu,b\n")
    monkeypatch.chdir(folder)
    named = {"..": "shop", ".": "logs", "up\\down.csv": "up-down", "..csv": "..csv"}
    dataset = prepare(source_from_path(Path(path)), tmp_path / "out", report=quiet)
    assert dataset.name == named.get(path, "plain")


@pytest.mark.parametrize("line", [1, 2])
def test_a_record_of_endless_depth_is_refused(tmp_path: Path, line: int):
    log = tmp_path / "log.jsonl"
    deep = '{"user": 1, "item": 2, "more": ' + "[" * 100_000
    log.write_text('{"user": 1, "item": 2}\n' * (line - 1) + deep + "\n")
    message = "line 1 is not JSON" if line == 1 else "cannot be read"
    with pytest.raises(InputError, match=rf"log\.jsonl.* {message}"):
        made(log)
