"""A user's own table of items, in every form, and what is wrong with broken ones."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.data.cache import open_data
from recsys.data.formats import source_from_path
from recsys.data.info import describe
from recsys.data.item_table import read_item_table
from recsys.data.prepare import DataConfig, prepare
from recsys.data.sequences import SequenceDataset
from recsys.data.sources import resolve
from recsys.data.split import SplitConfig, split
from recsys.errors import InputError

DAMAGED = gzip.compress(b"")[:10] + b"\x07" * 99
"""A gzip header, and behind it a block of a kind that there is not."""
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
        "tags": [["face", "skin"], None],
        "description": ["soft", "hard"],
        "price": [3, 4],
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
    assert said[0] == "i.jsonl: 1 rows name an item again and are left out"


def test_the_title_comes_first_and_what_is_no_text_is_left_out_and_said(tmp_path: Path):
    said: list[str] = []
    rows = [
        {
            "asin": f"B{number:03}",
            "id": number,
            "picture": f"https://shop/{number}.jpg",
            "brand": f"Brand{number}",
            "price": f"${number}.50",
            "size": {"width": 3},
            "vector": [0.5, 1.0],
            "note": None,
            "categories": [["Beauty", "Skin"], ["Beauty"]],
            "title": "same",
        }
        for number in range(30)
    ]
    table = read_item_table(written(tmp_path / "i.jsonl", rows), None, said.append)
    assert table.column_names == ["item", "title", "brand", "categories", "price"]
    assert table["price"].to_pylist() == [number + 0.5 for number in range(30)]
    assert table["item"].to_pylist() == [str(number) for number in range(30)]
    assert table["categories"].to_pylist()[0] == ["Beauty", "Skin", "Beauty"]
    assert said == [
        "i.jsonl: item = 'id', texts in brand, categories, title, numbers in price; left out:"
        " asin (ids), picture (ids), size (nested), vector (numbers), note (nothing)"
    ]


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([3, 4, None], [3, 4, None]),
        (["3", "-4", ""], [3, -4, None]),
        (["3", "4.5", " "], [3.0, 4.5, None]),
        (["$3.50", "€ 4", "1,299.50"], [3.5, 4.0, 1299.5]),
        ([True, False, None], [1, 0, None]),
        ([1e300, 2, float("nan")], [1e300, 2.0, None]),
        (["1.234,5", "2", "3"], None),
        (["5 %", "2", "3"], None),
        ([2**70, 1, 2], None),
        ([float("inf"), 1, 2], None),
        ([[1], [2], [3]], None),
    ],
)
def test_numbers_of_one_reading_are_kept_for_filters(tmp_path: Path, values, stored):
    rows = [{"id": n, "title": "a", "price": value} for n, value in enumerate(values)]
    table = read_item_table(written(tmp_path / "i.jsonl", rows), None, quiet)
    if stored is None:
        assert table.column_names == ["item", "title"]
    else:
        assert table["price"].to_pylist() == stored


def test_numbers_give_way_to_names_that_the_toolkit_uses(tmp_path: Path):
    path = tmp_path / "i.csv"
    path.write_text("sku,item,count,text,title\n1,2,3,4,e\n")
    table = read_item_table(path, "sku", quiet)
    assert table.to_pylist() == [
        {"item": "1", "title": "e", "item_number": 2, "count_number": 3, "text_number": 4}
    ]


def test_what_the_log_calls_its_items_is_the_likeliest_column(tmp_path: Path):
    path = tmp_path / "i.csv"
    path.write_text("id,product,title\n1,a,x\n")
    assert read_item_table(path, None, quiet, "product")["item"].to_pylist() == ["a"]
    assert read_item_table(path, None, quiet, "elsewhere")["item"].to_pylist() == ["1"]


def test_a_few_texts_of_one_word_are_no_ids(tmp_path: Path):
    rows = [{"id": number, "note": f"V{number}"} for number in range(5)]
    table = read_item_table(written(tmp_path / "i.jsonl", rows), None, quiet)
    assert table.column_names == ["item", "note"]


def test_names_that_the_toolkit_uses_are_given_way(tmp_path: Path):
    path = tmp_path / "i.csv"
    path.write_text("sku,item,count,text,description,Title\n1,a,b,c,d,e\n")
    table = read_item_table(path, None, quiet)
    said = {"title": "e", "count_text": "b", "description_": "c", "description": "d"}
    assert table.to_pylist() == [{"item": "a", **said, "sku": 1}]
    table = read_item_table(path, "sku", quiet)
    assert table.to_pylist()[0]["item"] == "1"
    assert table.to_pylist()[0]["item_text"] == "a"


def test_text_alone_keeps_its_name(tmp_path: Path):
    table = read_item_table(written(tmp_path / "i.jsonl", [{"id": 1, "text": "a"}]), None, quiet)
    assert table.column_names == ["item", "text"]


def test_other_alphabets_long_texts_and_broken_characters_are_read(tmp_path: Path):
    path = tmp_path / "i.jsonl"
    texts = ["крем", "line\u2028line", "x" * 100_000, "half \ud83d"]
    rows = [{"id": float(number), "title": text} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:1] + rows[2:]))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rows[1], ensure_ascii=False) + "\n")
    table = read_item_table(path, None, quiet)
    assert table["item"].to_pylist() == ["0", "2", "3", "1"]
    assert table["title"].to_pylist() == ["крем", "x" * 100_000, "half ?", "line\u2028line"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.csv", "", "is empty"),
        ("i.csv", "id,title\n1\n", "line 2 has 1 fields, the first line 2"),
        ("i.csv", "id,id\n1,2\n", "must name each column once"),
        ("i.csv", "code,title\n1,a\n", "which column of .* Say it with --items-id-column"),
        ("i.csv", "id\n1\n", "holds nothing but item ids in 'id'"),
        ("i.csv", "id,off\n1,5 %\n", "holds nothing but item ids .* left out: off .numbers."),
        ("i.csv", 'id,title\n1,"a\n', "line 2 cannot be read"),
        ("i.csv", "id,title\n,a\n", "names no item in its column 'id'"),
        ("i.jsonl", '{"id": 1}\n{', "line 2 is not JSON"),
        ("i.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("i.jsonl", '{"id": 1, "a": ' + "[" * 100_000, "line 1 is not JSON: .*recursion"),
        ("i.parquet", "x", "cannot be read as Parquet"),
        ("i.csv.gz", "x", "cannot be read"),
    ],
)
def test_a_broken_table_is_refused_with_the_place(tmp_path: Path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_item_table(tmp_path / name, None, quiet)


@pytest.mark.parametrize("name", ["i.csv.gz", "i.jsonl.gz"])
def test_a_compressed_table_that_is_damaged_inside_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(DAMAGED)
    with pytest.raises(InputError, match=rf"{name} cannot be read: .*decompressing"):
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
    assert f"1 of 3 items are not in {tmp_path / 'i.jsonl'}" in said
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["items_without_text"] == 1
    assert describe(SequenceDataset.load(tmp_path / "out"))["items_without_text"] == 1


def test_a_table_of_other_items_is_refused(tmp_path: Path):
    other = written(tmp_path / "i.jsonl", [{"id": "B07", "title": "x"}])
    with pytest.raises(InputError, match="its ids are 'B07', those of the log 7, 8, …"):
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


@pytest.mark.slow
def test_scientific_has_a_title_for_every_item_and_a_brand_for_most(
    real_data: Path, tmp_path: Path
):
    source = resolve("amazon-scientific", report=quiet)
    catalogue = prepare(source, tmp_path / "out", report=quiet).catalogue
    assert catalogue.num_rows == 4_385
    assert catalogue["title"].null_count == 0
    assert catalogue["categories"].null_count < 0.05 * 4_385
    assert catalogue["brand"].null_count < 0.1 * 4_385


@pytest.mark.slow
def test_beauty_takes_its_titles_by_the_id_of_the_log(real_data: Path, tmp_path: Path):
    said: list[str] = []
    folder = real_data / "s3rec"
    config = DataConfig(items=str(folder / "Beauty_item_text.jsonl.gz"))
    source = source_from_path(folder / "Beauty.txt.gz")
    dataset = prepare(source, tmp_path / "out", config, report=said.append)
    assert dataset.catalogue.column_names == ["item", "count", "title", "attributes"]
    assert dataset.catalogue["title"].null_count == 7
    assert dataset.info["items_without_text"] == 0
    row = dataset.catalogue.filter(pc.equal(dataset.catalogue["item"], 1)).to_pylist()[0]
    assert row["title"] == "OPI Nail Lacquer, Simmer and Shimmer, 0.5-Fluid Ounce"
    assert row["attributes"] == ["OPI", "Makeup", "Nails", "Nail Polish"]
    assert not any("are not in" in text for text in said)


@pytest.mark.slow
def test_films_of_ml_1m_keep_title_and_genres(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RECSYS_DATA", str(real_data))
    catalogue = prepare(
        resolve("movielens-1m", report=quiet), tmp_path / "out", report=quiet
    ).catalogue
    assert (catalogue["title"].null_count, catalogue["categories"].null_count) == (0, 0)
