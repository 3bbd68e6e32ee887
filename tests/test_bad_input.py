"""Logs and data sets that cannot be used: named with the remedy, nothing lost, no traceback."""

import errno
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from commands import contents, recsys, refused

from recsys.data import prepare as prepare_module

HEAD = "user,item,time\n"
ROWS = "".join(f"u{user},i{(user + step) % 12},{step}\n" for user in range(20) for step in range(6))
GOOD = HEAD + ROWS


def parquet(frame: dict[str, list]) -> bytes:
    file = io.BytesIO()
    pd.DataFrame(frame).to_parquet(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with log.csv, the data set `data` and the run `run`."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "log.csv").write_text(GOOD)
    recsys("data", "prepare", folder / "log.csv", "--out", folder / "data")
    recsys("train", "--model", "popular", "--data", folder / "data", "--out", folder / "run")
    return folder


@pytest.fixture(autouse=True)
def _own_shop(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(shop, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


LOGS: dict[str, tuple[str | bytes, str]] = {
    "empty.csv": ("", "is empty"),
    "blank.csv": ("\n\n", "is empty"),
    "header.csv": (HEAD, "is empty: it has no interactions"),
    "empty.csv.gz": (gzip.compress(b""), "is empty"),
    "lonely.txt": ("u1\nu2\n", "is empty: it has no interactions"),
    "no-item.csv": (
        "user,thing\nu1,a\n",
        "holds the item? Say it with --item-column (columns: 'user', 'thing')",
    ),
    "twice.csv": ("user,user,item\n1,2,3\n", "must name each column once, got 'user,user,item'"),
    "word.csv": (GOOD + "u1,i1,soon\n", "the time 'soon' in line 122"),
    "nan.csv": (GOOD + "u1,i1,nan\n", "the time 'nan' in line 122"),
    "endless.csv": (GOOD + "u1,i1,inf\n", "the time 'inf' in line 122"),
    "far.csv": (
        GOOD + "u1,i1,99999999999999999999\n",
        "the time '99999999999999999999' in line 122",
    ),
    "no-user.csv": (GOOD + ",i1,3\n", "1 rows have no user, the first in line 122"),
    "null-item.csv": (GOOD + "u1,,3\nu2,,4\n", "2 rows have no item, the first in line 122"),
    "no-time.csv": (GOOD + "u1,i1,\n", "1 rows have no time, the first in line 122"),
    "null.jsonl": (
        '{"user":1,"item":2}\n{"user":1,"item":null}\n',
        "1 rows have no item, the first in line 2",
    ),
    "null.parquet": (
        parquet({"user": ["u", "v"], "item": ["a", None]}),
        "1 rows have no item, the first in row 2",
    ),
    "few.csv": (GOOD + "u1,i1\n", "Line: 122"),
    "many.csv": (GOOD + "u1,i1,3,4\n", "Line: 122"),
    "quote.csv": (GOOD + 'u1,"i1,3\n', "Line: 122"),
    "latin.csv": (GOOD.encode() + b"u1,\xe9,3\n", "not utf-8"),
    "cut.csv.gz": (gzip.compress(GOOD.encode())[:200], "end of GZIP stream"),
    "plain.csv.gz": (GOOD, "Not a gzipped file"),
    "broken.jsonl": ('{"user":1,"item":2}\n{"user":1,\n{"user":1,"item":3}\n', "line 3"),
    "number.jsonl": ('{"user":1,"item":2}\n5\n', "line 2"),
    "list.json": ('[{"user":1,"item":2}]\n', "line 1 is not a JSON object"),
    "cut.parquet": (parquet({"user": [1] * 99, "item": [2] * 99})[:300], "Parquet|magic bytes"),
    "fake.parquet": ("PAR1", "Parquet|magic bytes"),
    "table.xlsx": ("abc", "one of .csv"),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_bad_log_is_named_with_its_line_and_replaces_nothing(tmp_path: Path, name: str):
    text, wanted = LOGS[name]
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    before = contents(tmp_path)
    for words in (
        ("data", "prepare", name, "--out", "data"),
        ("train", "--model", "popular", "--data", name, "--out", "new"),
    ):
        message = refused(*words)
        assert name in message
        assert any(part in message for part in wanted.split("|"))
        for advice_for_programmers in ("auto_detect", "ignore_errors", "LINE 1"):
            assert advice_for_programmers not in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data prepare no.csv --out d", "'no.csv' is neither a file or folder nor"),
        ("data info deep/no.csv", "'deep/no.csv' is neither a file or folder nor"),
        ("train --model popular --data no.csv", "--data sample needs no download"),
        ("data prepare log.csv --out d --user-column who", "log.csv has no column 'who'"),
        (
            "train --model popular --data log.csv --time-column when",
            "(columns: 'user', 'item', 'time')",
        ),
        (
            "data prepare log.csv --out d --min-user-events 7",
            "nothing is left of 120 interactions of log.csv",
        ),
        (
            "train --model popular --data log.csv --set data.min_item_events=99",
            "min_item_events=99; lower them",
        ),
        (
            "data prepare log.csv --out d --min-item-events 0",
            "data.min_item_events must be at least 1, got 0",
        ),
        ("data prepare log.csv --out d --engine spark", "--engine duckdb works"),
        ("data prepare log.csv --out d --sessions gap:30x", "unit s, m, h or d, as in gap:30m"),
        ("data prepare log.csv --out d --sessions gap:0m", "a gap is a number above 0"),
        ("data prepare log.csv --out d --sessions gap", "data.sessions=gap: a gap is a number"),
        ("data prepare log.csv --out d --sessions 30m", "as in gap:30m"),
        (
            "data prepare lines.txt --out d --sessions gap:30m",
            "data.sessions=gap:30m needs times, lines.txt has none",
        ),
        (
            "train --model popular --data log.csv --set data.sessions=lines",
            "log.csv has columns: name one, as in data.sessions=column:session_id",
        ),
        (
            "data prepare log.csv --out d --sessions column:users",
            "log.csv has no column 'users'; did you mean 'user'?",
        ),
        ("data prepare log.csv --out d --sessions visit", "log.csv has no column 'visit'"),
        ("data prepare log.csv --out d --sessions column:", "names no column; write column:NAME"),
        ("data prepare lines.txt --out d --sessions visit", "lines.txt has no columns"),
        (
            "data prepare log.csv --out d --sessions item --user-column user",
            "both say what is one sequence",
        ),
        ("data prepare log.csv --out d --test no.csv", "no.csv does not exist"),
        ("data prepare log.csv --out d --test empty.csv", "empty.csv is empty"),
        (
            "data prepare log.csv --out d --test thesis/one.csv",
            "which column of thesis/one.csv holds the user?",
        ),
        (
            "data prepare log.csv --out d --test lines.txt",
            "lines.txt is read as sequences, log.csv",
        ),
        (
            "data prepare lines.txt --out d --test log.csv --sessions lines",
            "a test set has the format of its log",
        ),
        ("train --model popular --data data --set data.test=log.csv", "is prepared already"),
        ("train --model popular --data data --set split.kind=sesions", "did you mean 'sessions'?"),
        ("data prepare log.csv --out log.csv", "log.csv exists and is not a prepared data set"),
        ("data prepare log.csv --out thesis", "thesis exists and is not a prepared data set"),
        ("data prepare none --out d", "none holds no files to read"),
        ("data prepare thesis --out d", "thesis cannot be read: parts of one format are needed"),
        (
            "train --model popular --data log.csv --config no.toml",
            "settings file no.toml does not exist",
        ),
        (
            "train --model popular --data log.csv --out log.csv",
            "log.csv exists and is not a run folder",
        ),
        (
            "train --model popular --data log.csv --out thesis",
            "thesis exists and is not a run folder",
        ),
        (
            "train --model lssl_rec --data lines.txt --set model.time=gaps --out r",
            "model.time=gaps needs the times of events, and lines has none",
        ),
        (
            "train --model popular --data lines.txt --set model.days=3 --out r",
            "model.days needs to know what a day is, and lines has no times",
        ),
        ("train --model sasrec --data log.csv --seed -1", "--seed"),
        ("train --model sasrec --data log.csv --seed 99999999999999999999999", "--seed"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_remedy(tmp_path: Path, words: str, message: str):
    for folder, files in (("none", ["notes.md"]), ("thesis", ["one.csv", "two.jsonl"])):
        Path(folder).mkdir()
        for file in files:
            Path(folder, file).write_text("mine")
    Path("empty.csv").touch()
    Path("lines.txt").write_text("1 2 3 4\n2 3 4\n")
    before = contents(tmp_path)
    assert message in refused(*words.split())
    shutil.rmtree("cache", ignore_errors=True)
    assert contents(tmp_path) == before


def test_mixed_ids_are_kept_as_text_and_reported():
    rows = "".join(
        f'{{"user": {user}, "item": {item}}}\n' for user in (1, 2) for item in (7, '"x"', 8)
    )
    Path("log.jsonl").write_text(rows)
    answer = recsys("data", "prepare", "log.jsonl", "--out", "data")
    assert answer.code == 0
    assert "item ids are of mixed types: all are kept as text" in answer.err
    assert "user ids" not in answer.err
    assert pq.read_table("data/items.parquet")["item"].to_pylist() == ["7", "x", "8"]


def test_duplicate_rows_are_dropped_and_counted():
    Path("log.csv").write_text(GOOD + ROWS[: ROWS.index("u1,")])
    answer = recsys("data", "prepare", "log.csv", "--out", "data", "--json")
    assert "duplicates: 6 rows dropped (data.duplicates=exact)" in answer.err
    assert json.loads(answer.out)["interactions"] == 120
    assert json.loads(Path("data/dataset.json").read_text())["duplicates_dropped"] == 6


def test_one_user_alone_is_enough_with_three_items_and_refused_with_two():
    Path("three.csv").write_text(HEAD + "u,a,1\nu,b,2\nu,c,3\nu,d,4\n")
    answer = recsys(
        "train", "--model", "sasrec", "--data", "three.csv", "--set", "trainer.epochs=1"
    )
    assert answer.code == 0
    assert answer.out.count("user u chose last") == 1
    Path("two.csv").write_text(HEAD + "u,a,1\nu,b,2\n")
    message = refused("train", "--model", "sasrec", "--data", "two.csv")
    assert "(1 users, 2 interactions)" in message
    assert "at least 3 interactions" in message


HARM: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "other": lambda file: file.write_bytes(b"\x00\xff" * 500),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", ["dataset.json", "sequences.arrow", "items.parquet"])
def test_a_damaged_data_set_is_named_and_to_be_prepared_again(file: str, harm: str):
    HARM[harm](Path("data", file))
    before = contents(Path("data"))
    for words in (
        ("data", "info", "data"),
        ("train", "--model", "popular", "--data", "data", "--out", "other"),
        ("eval", "run", "--data", "data"),
        ("recommend", "run", "--all-users", "--data", "data", "--out", "recs.parquet"),
    ):
        message = refused(*words)
        assert "data" in message
        if "train" in words or "info" in words:
            assert "prepare it again" in message
    assert contents(Path("data")) == before
    assert not Path("other").exists()
    assert not list(Path().glob("recs.parquet*"))


@pytest.mark.parametrize(
    "harm", [lambda facts: facts.pop("time_unit"), lambda facts: facts.update(time_unit="weeks")]
)
def test_a_data_set_without_a_unit_of_time_is_refused(harm: Callable[[dict], object]):
    file = Path("data/dataset.json")
    facts = json.loads(file.read_text())
    harm(facts)
    file.write_text(json.dumps(facts))
    assert "dataset.json is damaged" in refused("data", "info", "data", "--picture", "p.png")


def test_a_damaged_data_set_in_the_cache_is_prepared_anew(tmp_path: Path):
    words = ("train", "--model", "popular", "--data", "log.csv", "--json", "--out")
    assert recsys(*words, "one").code == 0
    (file,) = tmp_path.glob("cache/prepared/*/sequences.arrow")
    file.write_bytes(b"")
    assert recsys(*words, "two").code == 0


def test_preparing_again_keeps_what_else_lies_in_the_folder():
    Path("data/notes.txt").write_text("mine")
    recsys("data", "prepare", "log.csv", "--out", "data")
    assert Path("data/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["write_sequences", "_catalogue", "_stream"])
@pytest.mark.parametrize(("error", "code"), [(errno.ENOSPC, 1), (None, 130)])
def test_a_preparation_cut_short_leaves_the_old_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: int | None, code: int
):
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt if error is None else OSError(error, os.strerror(error))

    before = contents(tmp_path)
    monkeypatch.setattr(prepare_module, place, stop)
    for out in ("data", "new"):
        answer = recsys("data", "prepare", "log.csv", "--out", out)
        assert (answer.code, answer.out) == (code, "")
        assert error is None or "error: no space left" in answer.err
    assert contents(tmp_path) == before
    assert sorted(os.listdir()) == ["data", "log.csv", "run"]


def test_a_data_set_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace, failed = os.replace, []

    def fail_once(source: Path, target: Path) -> None:
        if Path(target).absolute().is_relative_to(tmp_path / "data") and not failed:
            failed.append(target)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    before = contents(tmp_path)
    monkeypatch.setattr(os, "replace", fail_once)
    assert "no space left" in refused("data", "prepare", "log.csv", "--out", "data", code=1)
    assert failed
    assert contents(tmp_path) == before


SHOP, ITEM, USER = "[red]shop[b]", "[red]i{}[/red]", "[/]u{}"


def hostile_log() -> Path:
    rows = [(USER.format(u), ITEM.format((u + s) % 9), s) for u in range(20) for s in range(5)]
    path = Path(f"{SHOP}.csv")
    path.write_text(HEAD + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    return path


def test_names_and_ids_with_brackets_are_printed_as_they_are():
    path = hostile_log()
    answer = recsys("data", "prepare", path, "--out", "[bold]data")
    assert answer.code == 0
    assert SHOP in answer.out
    answer = recsys("train", "--model", "item_knn", "--data", path, "--out", "[bold]run")
    assert answer.code == 0
    assert SHOP in answer.out
    assert "run folder: [bold]run" in answer.out
    assert f"user {USER.format(4)} chose last" in answer.out
    assert "[red]i0[/red]" in answer.out
    for words, printed in (
        (("data", "info", "[bold]data"), [SHOP, str(Path("[bold]data/info.png"))]),
        (("eval", "[bold]run"), [SHOP]),
        (("compare", "[bold]run", "[bold]run"), [SHOP, "[bold]run"]),
        (("recommend", "[bold]run", "--history", "[red]i3[/red],[/]x"), ["[red]i4[/red]", "[/]x"]),
        (("recommend", "[bold]run", "--all-users", "--out", "[b]r.parquet"), ["[b]r.parquet"]),
    ):
        answer = recsys(*words)
        assert answer.code == 0
        assert all(text in answer.out + answer.err for text in printed)


@pytest.mark.parametrize(
    "words",
    ["[/red]", "train --model [/red] --data log.csv", "eval [/red]", "data info [/red].csv"],
)
def test_words_with_brackets_are_refused_as_they_are(words: str):
    answer = recsys(*words.split())
    assert (answer.code, answer.out) == (2, "")
    assert "[/red]" in answer.err


def test_ids_with_commas_and_quotes_come_through():
    items = ["x,y", 'say "z"', "  w ", "v"]
    rows = [(f"u,{u}", items[(u + s) % 4], s) for u in range(20) for s in range(4)]
    pd.DataFrame(rows, columns=["user", "item", "time"]).to_csv("commas.csv", index=False)
    assert recsys("train", "--model", "item_knn", "--data", "commas.csv", "--out", "new").code == 0
    assert set(pq.read_table("new/items.parquet")["item"].to_pylist()) == set(items)
    history = '"x,y","say ""z"""'
    answer = recsys("recommend", "new", "--history", history, "-k", 1, "--json")
    assert json.loads(answer.out)["unknown"] == []
    assert json.loads(answer.out)["items"][0]["item"] == "  w "
