"""Named sources: parsers on the publishers' formats, and where files are looked for."""

import gzip
import hashlib
import http.server
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.data import sources
from recsys.data.amazon import read_items
from recsys.data.cache import open_data
from recsys.data.prepare import DataConfig, prepare
from recsys.errors import InputError, WorkError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("RECSYS_DATA", str(folder))
    return folder


def gz(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    return path


def prepared(name: str, tmp_path: Path, said: list[str] | None = None):
    report = (said if said is not None else []).append
    return prepare(sources.resolve(name, report=report), tmp_path / "out", report=report)


def test_amazon_2014_reads_python_literals_and_runs_nothing(shelf, tmp_path):
    reviews = [
        json.dumps({"reviewerID": f"U{u}", "asin": asin, "unixReviewTime": 1_300_000_000 + u})
        for u in range(3)
        for asin in ("B1", "B2")
    ]
    gz(shelf / "deep" / "reviews_Beauty_5.json.gz", reviews)
    gz(
        shelf / "deep" / "meta_Beauty.json.gz",
        [
            "{'asin': 'B1', 'title': 'Rose &amp; Oil', 'brand': 'O\\'Neil',"
            " 'categories': [['Beauty', 'Skin'], ['Beauty']]}",
            "__import__('pathlib').Path('ran').write_text('x')",
            '{"asin": "B2", "title": "<b>Comb</b>"}',
            "not a line at all (",
        ],
    )
    said: list[str] = []
    dataset = prepared("amazon", tmp_path, said)
    rows = dataset.catalogue.to_pylist()
    assert rows[0]["title"] == "Rose & Oil"
    assert rows[0]["brand"] == "O'Neil"
    assert rows[0]["categories"] == ["Beauty", "Skin"]
    assert rows[1]["title"] == "Comb"
    assert any("2 lines could not be read" in text for text in said)
    assert not Path("ran").exists()


def test_amazon_2023_has_times_in_ms_and_a_5_core(shelf, tmp_path):
    lines = [
        json.dumps(
            {
                "user_id": f"U{u}",
                "parent_asin": f"B{i}",
                "timestamp": 1_600_000_000_000 + u * 10 + i,
            }
        )
        for u in range(6)
        for i in range(5)
    ]
    gz(
        shelf / "All_Beauty.jsonl.gz",
        [*lines, json.dumps({"user_id": "U9", "parent_asin": "B1", "timestamp": 1})],
    )
    gz(
        shelf / "meta_All_Beauty.jsonl.gz",
        [json.dumps({"parent_asin": "B3", "title": "Soap", "store": "S"})],
    )
    dataset = prepared("amazon2023:All_Beauty", tmp_path)
    assert (len(dataset), dataset.num_items, len(dataset.items)) == (6, 5, 30)
    assert dataset.info["time_unit"] == "ms"
    assert dataset.catalogue["title"].to_pylist() == [None, None, None, "Soap", None]
    assert dataset.catalogue["brand"].to_pylist()[3] == "S"


def test_reviews_without_a_meta_file_train_without_titles(shelf, tmp_path):
    gz(
        shelf / "Music_5.json.gz",
        [json.dumps({"reviewerID": "U", "asin": "B", "unixReviewTime": 5})],
    )
    said: list[str] = []
    assert "title" not in prepared("amazon2018:Music", tmp_path, said).catalogue.column_names
    assert any("no meta file" in text for text in said)


def test_a_script_instead_of_a_title_is_no_title(tmp_path):
    meta = gz(
        tmp_path / "meta.json.gz",
        [json.dumps({"asin": "B", "title": "var aPageStart = (new Date())"})],
    )
    assert read_items(meta, print)["title"].to_pylist() == [None]


def test_movielens_files_are_told_apart_by_their_folder(shelf, tmp_path):
    (shelf / "ml-20m").mkdir()
    (shelf / "ml-latest-small").mkdir()
    (shelf / "ml-20m" / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,50,3,9\n1,51,3,9\n"
    )
    (shelf / "ml-latest-small" / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n7,8,3,9\n"
    )
    (shelf / "ml-latest-small" / "movies.csv").write_text(
        'movieId,title,genres\n8,"Matrix, The (1999)",Action|Sci-Fi\n'
    )
    small = prepared("movielens-latest-small", tmp_path)
    assert small.catalogue.to_pylist() == [
        {
            "item": 8,
            "count": 1,
            "title": "The Matrix (1999)",
            "categories": ["Action", "Sci-Fi"],
            "text": "The Matrix (1999). Action, Sci-Fi",
        }
    ]
    assert prepared("movielens-20m", tmp_path).num_items == 2


def test_names_and_paths_that_are_neither_get_a_suggestion():
    with pytest.raises(InputError, match="did you mean 'movielens-100k'"):
        sources.resolve("movielens100k", report=print)
    with pytest.raises(InputError, match="did you mean 'sports'"):
        sources.resolve("amazon:sport", report=print)
    with pytest.raises(InputError, match="needs a category"):
        sources.resolve("amazon2018", report=print)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("movielens-100k", "u.data and u.item into a folder ml-100k"),
        ("amazon:toys", "reviews_Toys_and_Games_5.json.gz and meta_Toys_and_Games.json.gz"),
        ("amazon2023:All_Beauty", "All_Beauty.jsonl.gz and meta_All_Beauty.jsonl.gz"),
    ],
)
def test_a_failed_download_says_what_to_put_where(shelf, monkeypatch, name, files):
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(sources, "GROUPLENS", nowhere)
    monkeypatch.setattr(sources, "AMAZON", dict.fromkeys(sources.AMAZON, nowhere))
    with pytest.raises(WorkError, match=rf"put {re.escape(files)} in (.|\n)*--data sample"):
        sources.resolve(name, report=print)


class Publisher(http.server.SimpleHTTPRequestHandler):
    """Serves the folder `files` of its server."""

    def __init__(self, request, client, server):
        super().__init__(request, client, server, directory=server.files)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def publisher(tmp_path, shelf, monkeypatch) -> Iterator[Path]:
    """The folder from which every source is downloaded."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Publisher)
    server.files = tmp_path / "published"
    server.files.mkdir()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(sources, "GROUPLENS", address)
    monkeypatch.setattr(sources, "AMAZON", dict.fromkeys(sources.AMAZON, address))
    yield server.files
    server.shutdown()
    thread.join()
    server.server_close()


DAMAGED = gzip.compress(b"")[:10] + b"\x07" * 99
"""A gzip header, and behind it a block of a kind that there is not."""
REVIEW = json.dumps({"reviewerID": "U", "asin": "B", "unixReviewTime": 5})


def test_titles_that_could_not_be_downloaded_are_downloaded_later(publisher, cache, tmp_path):
    reviews = gz(publisher / "categoryFilesSmall" / "Music_5.json.gz", [REVIEW])
    with pytest.raises(WorkError, match=r"meta_Music\.json\.gz cannot be downloaded"):
        sources.resolve("amazon2018:Music", report=print)
    reviews.unlink()  # what is there already is not fetched again
    meta = json.dumps({"asin": "B", "title": "Song"})
    gz(publisher / "metaFiles2" / "meta_Music.json.gz", [meta])
    dataset = prepared("amazon2018:Music", tmp_path)
    assert dataset.catalogue["title"].to_pylist() == ["Song"]
    assert sorted(path.name for path in (cache / "amazon-2018").iterdir()) == [
        "Music_5.json.gz",
        "meta_Music.json.gz",
    ]


def test_a_release_of_movielens_whose_films_are_missing_is_downloaded_again(
    publisher, cache, tmp_path
):
    files = {"u.data": "1\t7\t3\t9\n", "u.item": "7|Film (1995)|||||1\n"}
    for names in (["u.data"], ["u.data", "u.item"]):
        with zipfile.ZipFile(publisher / "ml-100k.zip", "w") as archive:
            for name in names:
                archive.writestr(f"ml-100k/{name}", files[name])
        md5 = hashlib.md5((publisher / "ml-100k.zip").read_bytes()).hexdigest()
        (publisher / "ml-100k.zip.md5").write_text(f"MD5 (ml-100k.zip) = {md5}\n")
        if names == ["u.data"]:  # what is cut off here stops as well between two files
            with pytest.raises(WorkError, match="is not the archive that was expected"):
                sources.resolve("movielens-100k", report=print)
    assert prepared("movielens-100k", tmp_path).catalogue["title"].to_pylist() == ["Film (1995)"]
    assert not (cache / "ml-100k.zip").exists()


def test_a_release_of_movielens_that_another_process_unpacks_is_left_to_it(
    publisher, cache, monkeypatch
):
    """The archive is gone when the first is done with it."""
    extract = sources._extract

    def meanwhile(archive: Path, folder: Path, file: str) -> Path:
        with pytest.raises(InputError, match="being downloaded by another process"):
            sources.resolve("movielens-100k", report=print)
        return extract(archive, folder, file)

    with zipfile.ZipFile(publisher / "ml-100k.zip", "w") as archive:
        archive.writestr("ml-100k/u.data", "1\t7\t3\t9\n")
        archive.writestr("ml-100k/u.item", "7|Film (1995)|||||1\n")
    (publisher / "ml-100k.zip.md5").write_text("none\n")
    monkeypatch.setattr(sources, "_extract", meanwhile)
    source = sources.resolve("movielens-100k", report=print)
    assert all(file.is_file() for file in source.files + source.item_files)


def test_the_list_names_every_source_and_where_it_is(shelf):
    (shelf / "ml-100k").mkdir()
    (shelf / "ml-100k" / "u.data").write_text("")
    found = {entry["name"]: entry["found"] for entry in sources.names()}
    assert found["movielens-100k"] == str(shelf / "ml-100k")
    assert found["amazon:toys"] is None
    assert len(found) == 1 + 4 + 1 + 25 + 2


@pytest.mark.parametrize(
    ("name", "counts", "title"),
    [
        ("amazon2018:Gift_Cards", (458, 148, 2_969), "Gift Card"),
        ("movielens-100k", (943, 1_682, 100_000), "(19"),
        ("movielens-1m", (6_040, 3_416, 999_611), "(19"),
        ("movielens-latest-small", (671, 9_066, 100_004), "("),
    ],
)
def test_real_files_have_their_published_counts_and_titles(
    real_data, tmp_path, name, counts, title
):
    dataset = prepared(name, tmp_path)
    assert (len(dataset), dataset.num_items, len(dataset.items)) == counts
    titles = dataset.catalogue["title"].to_pylist()
    assert sum(title in (text or "") for text in titles) > 0.5 * len(titles)


def test_lines_of_items_that_no_text_can_hold_are_mended_or_counted(tmp_path):
    nested = '{"asin": "B2", "categories": ' + "[" * 100_000 + "]" * 100_000 + "}"
    meta = gz(tmp_path / "meta.json.gz", ['{"asin": "B1", "title": "half \\ud83d"}', nested])
    said: list[str] = []
    (item,) = read_items(meta, said.append).to_pylist()
    assert item["title"] == "half ?"
    assert said == ["meta.json.gz: 1 lines could not be read and were skipped"]


def test_compressed_files_of_items_that_are_damaged_inside_are_refused(shelf, tmp_path):
    gz(shelf / "Music_5.json.gz", [REVIEW])
    (shelf / "meta_Music.json.gz").write_bytes(DAMAGED)
    with pytest.raises(InputError, match=r"meta_Music\.json\.gz cannot be read: .*decompressing"):
        prepared("amazon2018:Music", tmp_path)
    (shelf / "ml-100k").mkdir()
    (shelf / "ml-100k" / "u.data").write_text("1\t7\t3\t9\n")
    (shelf / "ml-100k" / "u.item.gz").write_bytes(DAMAGED)
    with pytest.raises(InputError, match=r"u\.item\.gz cannot be read: .*decompressing"):
        prepared("movielens-100k", tmp_path)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_movielens_1m_of_other_ids_gets_its_own_back(shelf, tmp_path, ending):
    folder = shelf / "ml-1m"
    files = {
        "ml-1m_sas_sequences.txt": "1 2 1 3\n2 1 2 3\n",
        "sas_to_original_users.txt": "1 70\n2 80\n",
        "sas_to_original_items.txt": "1 11\n2 22\n3 33\n",
    }
    folder.mkdir()
    for name, text in files.items():
        data = gzip.compress(text.encode()) if ending else text.encode()
        (folder / f"{name}{ending}").write_bytes(data)
    dataset = prepared("movielens-1m", tmp_path)
    assert dataset.users.to_pylist() == [70, 80]
    raw = dataset.catalogue["item"].to_pylist()
    assert [raw[item - 1] for item in dataset[0]] == [22, 11, 33]
    (folder / f"sas_to_original_items.txt{ending}").unlink()
    (folder / "sas_to_original_items.txt").write_text("1 11\n2 22\n")
    with pytest.raises(InputError, match=r"sequences.txt.*, line 1 is not .*: 3"):
        prepared("movielens-1m", tmp_path)
    (folder / "sas_to_original_items.txt").write_text("1 11 5\n")
    with pytest.raises(InputError, match="is not two numbers a line"):
        prepared("movielens-1m", tmp_path)


def test_items_that_come_later_are_taken_into_the_cache(shelf):
    folder = shelf / "ml-100k"
    folder.mkdir()
    rows = (f"{user}\t{item}\t3\t{user + item}\n" for user in (1, 2) for item in (1, 2, 3))
    (folder / "u.data").write_text("".join(rows))
    assert "title" not in open_data("movielens-100k", DataConfig(), print)[0].catalogue.column_names
    (folder / "u.item").write_text("".join(f"{n}|Film {n} (1995)|||||1\n" for n in (1, 2, 3)))
    dataset, _ = open_data("movielens-100k", DataConfig(), print)
    assert dataset.catalogue["title"].to_pylist() == [f"Film {n} (1995)" for n in (1, 2, 3)]
    (folder / "u.item").write_text("1\n")
    with pytest.raises(InputError, match="is not a file of films"):
        open_data("movielens-100k", DataConfig(), print)
