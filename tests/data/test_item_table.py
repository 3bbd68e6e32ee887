"""A user's own table of items, in every form, and what is wrong with broken ones."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.cache import open_data
from recsys.data.formats import source_from_path
from recsys.data.item_table import read_item_table
from recsys.data.prepare import DataConfig, prepare
from recsys.data.sources import resolve
from recsys.data.split import SplitConfig, split
from recsys.errors import InputError

ROWS = [
    {"id": "7", "title": "Cream, rich", "price": 3, "tags": ["face", "skin"], "text": "soft"},
    {"id": "8", "title": None, "price": 4, "tags": [], "text": "hard"},
]


def quiet(text: str) -> None:
    """Nobody is told."""


def written(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


@pytest.mark.parametrize("name", ["items.jsonl", "items.jsonl.gz", "items.parquet"])
def test_rows_of_texts_and_lists_are_read_from(tmp_path: Path, name: str):
    table = read_item_table(written(tmp_path / name), None, quiet)
    assert table.to_pydict() == {
        "item": ["7", "8"],
        "title": ["Cream, rich", None],
        "price": ["3", "4"],
        "tags": [["face", "skin"], None],
        "description": ["soft", "hard"],
    }


def test_a_csv_with_quotes_and_a_tsv_without(tmp_path: Path):
    csv = tmp_path / "items.csv"
    csv.write_text('item_id,title\n7,"Cream, ""rich"""\n8,\n')
    tsv = tmp_path / "items.tsv"
    tsv.write_text('asin\ttitle\n7\t6" pipe\n8\tb\n')
    assert read_item_table(csv, None, quiet)["title"].to_pylist() == ['Cream, "rich"', None]
    assert read_item_table(tsv, None, quiet)["title"].to_pylist() == ['6" pipe', "b"]


def test_the_first_row_of_an_item_counts_and_it_is_said(tmp_path: Path):
    said: list[str] = []
    rows = [{"id": 1, "title": "a"}, {"id": 1, "title": "b"}, {"id": None, "title": "c"}]
    table = read_item_table(written(tmp_path / "i.jsonl", rows), None, said.append)
    assert table.to_pydict() == {"item": ["1"], "title": ["a"]}
    assert said == ["i.jsonl names 1 items more than once: the first row counts"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.csv", "", "is empty"),
        ("i.csv", "id,title\n1\n", "line 2 has 1 fields, the first line 2"),
        ("i.csv", "id,id\n1,2\n", "must name each column once"),
        ("i.csv", "code,title\n1,a\n", "which column of .* Say it with --set data.items_id_column"),
        ("i.csv", "id\n1\n", "holds no text besides its item ids"),
        ("i.csv", "id,title\n,a\n", "names no item in its column 'id'"),
        ("i.jsonl", '{"id": 1}\n{', "line 2 is not JSON"),
        ("i.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("i.parquet", "x", "cannot be read as Parquet"),
        ("i.csv.gz", "x", "cannot be read"),
    ],
)
def test_a_broken_table_is_refused_with_the_place(tmp_path: Path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_item_table(tmp_path / name, None, quiet)


def test_a_missing_table_or_column_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        read_item_table(tmp_path / "no.csv", None, quiet)
    with pytest.raises(InputError, match="has no column 'idd'; did you mean 'id'"):
        read_item_table(written(tmp_path / "i.jsonl"), "idd", quiet)


def prepared(tmp_path: Path, items: Path, said: list[str]) -> pa.Table:
    log = tmp_path / "log.csv"
    log.write_text("user,item\n1,7\n1,8\n2,7\n2,9\n")
    config = DataConfig(items=str(items))
    return prepare(source_from_path(log), tmp_path / "out", config, report=said.append).catalogue


def test_the_table_joins_the_log_whatever_the_type_of_ids(tmp_path: Path):
    said: list[str] = []
    catalogue = prepared(tmp_path, written(tmp_path / "i.jsonl"), said)
    assert catalogue["item"].to_pylist() == [7, 8, 9]
    assert catalogue["title"].to_pylist() == ["Cream, rich", None, None]
    assert "1 of 3 items are not in the table of items" in said


def test_a_table_of_other_items_is_refused(tmp_path: Path):
    other = written(tmp_path / "i.jsonl", [{"id": "B07", "title": "x"}])
    with pytest.raises(InputError, match="names none of the 3 items of"):
        prepared(tmp_path, other, [])


def test_the_cache_notices_another_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    log = tmp_path / "log.csv"
    log.write_text("user,item\n1,7\n1,8\n")
    items = written(tmp_path / "i.jsonl")
    config = DataConfig(items=str(items))
    first, _ = open_data(str(log), config, quiet)
    written(items, [{"id": "7", "title": "other"}])
    second, _ = open_data(str(log), config, quiet)
    assert first.catalogue["title"].to_pylist()[0] == "Cream, rich"
    assert second.catalogue["title"].to_pylist()[0] == "other"


@pytest.mark.slow
def test_scientific_is_split_as_its_publishers_did(real_data: Path, tmp_path: Path):
    source = resolve("amazon-scientific", report=quiet)
    dataset = prepare(source, tmp_path / "out", DataConfig(duplicates="keep"), report=quiet)
    raw = dataset.catalogue["item"].to_pylist()
    parts = split(dataset, SplitConfig())
    for part, queries in (("valid", parts.valid), ("test", parts.test)):
        file = real_data / "amazon-scientific" / f"Scientific.{part}.inter.gz"
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()[1:]
        theirs = {line.split("\t")[0]: line.split("\t") for line in lines}
        for user, start, end in zip(queries.user, queries.start, queries.end, strict=True):
            _, history, target = theirs[str(dataset.users[user].as_py())]
            ours = [raw[item - 1] for item in dataset.items[start:end]][-50:]
            assert ours == [int(item) for item in history.split()]
            assert raw[dataset.items[end] - 1] == int(target)
