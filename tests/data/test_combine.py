"""Several data sets as one."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from recsys.data.cache import content
from recsys.data.combine import combine
from recsys.data.formats import source_from_path, source_from_table
from recsys.data.interactions import Columns
from recsys.data.prepare import DataConfig, prepare
from recsys.data.sequences import SequenceDataset
from recsys.data.text import item_attributes, sentences
from recsys.errors import InputError


def made(folder: Path, name: str, titled: bool = True) -> SequenceDataset:
    log = pa.table({"user": ["u", "u", "v", "v"], "item": ["a", "b", "b", "c"]})
    items = folder / f"{name}.jsonl"
    items.write_text(json.dumps({"item": "a", "title": name, "tags": ["x", "y"]}) + "\n")
    config = DataConfig(items=str(items) if titled else None)
    source = source_from_table(log, Columns(), name)
    return prepare(source, folder / name, config, report=print)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


def test_histories_and_texts_stand_one_after_the_other(tmp_path: Path):
    parts = [made(tmp_path, "one"), made(tmp_path, "two")]
    whole = SequenceDataset.load(combine(parts, print))
    assert whole.name == "one+two"
    assert whole.users.to_pylist() == ["one:u", "one:v", "two:u", "two:v"]
    raw = whole.catalogue["item"].to_pylist()
    assert raw == [f"{name}:{item}" for name in ("one", "two") for item in "abc"]
    assert whole.catalogue["title"].to_pylist() == ["one", None, None, "two", None, None]
    assert whole.catalogue["tags"].to_pylist()[0] == "x, y"
    assert whole.catalogue["count"].to_pylist() == [1, 2, 1, 1, 2, 1]
    histories = [[raw[item - 1] for item in whole[user]] for user in range(4)]
    assert histories == [
        ["one:a", "one:b"],
        ["one:b", "one:c"],
        ["two:a", "two:b"],
        ["two:b", "two:c"],
    ]
    assert combine(parts, print) == combine(parts[:], print)


def test_a_column_that_is_all_there_is_stands_beside_those_of_others(tmp_path: Path):
    log = pa.table({"user": ["u", "u"], "item": ["a", "b"]})
    items = tmp_path / "items.csv"
    items.write_text("item,text\na,alpha\nb,beta\n")
    source = source_from_table(log, Columns(), "orders")
    orders = prepare(source, tmp_path / "orders", DataConfig(items=str(items)), report=print)
    assert "text" in orders.catalogue.column_names
    whole = SequenceDataset.load(combine([made(tmp_path, "one"), orders], print))
    texts = sentences(item_attributes(whole.catalogue))
    assert texts == ["one. x, y", "", "", "alpha", "beta"]


def test_given_test_sequences_take_no_part(tmp_path: Path):
    """On sessions i=(a, b), j=(b, c) and a test set of (c, a, d)."""
    log, held_out, items = (tmp_path / name for name in ("log.txt", "held_out.txt", "items.csv"))
    log.write_text("a b\nb c\n")
    held_out.write_text("c a d\n")
    items.write_text("item,title\n" + "".join(f"{item},thing {item}\n" for item in "abcd"))
    config = DataConfig(items=str(items), sessions="lines", test=str(held_out))
    tested = prepare(source_from_path(log), tmp_path / "log", config, report=print)
    assert tested.test_users == 1
    other, said = made(tmp_path, "other"), []
    folder = combine([tested, other], said.append)
    whole = SequenceDataset.load(folder)
    assert whole.users.to_pylist() == ["log:1", "log:2", "other:u", "other:v"]
    assert whole.test_users == 0
    raw = whole.catalogue["item"].to_pylist()
    assert [raw[item - 1] for item in whole.items[:4]] == ["log:a", "log:b", "log:b", "log:c"]
    counts = dict(zip(raw, whole.catalogue["count"].to_pylist(), strict=True))
    assert [counts[f"log:{item}"] for item in "abcd"] == [1, 2, 1, 0]
    assert (whole.info["users"], whole.info["interactions"]) == (4, 8)
    assert sum("test" in text for text in said) == 1
    assert "log: 1 sequences of its test set take no part" in said
    # Folders that held them were called by the fingerprints and the texts alone.
    digest = hashlib.sha256(json.dumps([tested.fingerprint, other.fingerprint]).encode())
    for dataset in (tested, other):
        digest.update(content(dataset.catalogue))
    assert not folder.name.endswith(digest.hexdigest()[:12])
    folder = combine([other], print)
    digest = hashlib.sha256(json.dumps([other.fingerprint]).encode() + content(other.catalogue))
    assert folder.name == f"other-{digest.hexdigest()[:12]}"


def test_data_sets_of_one_name_or_without_text_are_refused(tmp_path: Path):
    one = made(tmp_path, "one")
    with pytest.raises(InputError, match="must have different names"):
        combine([one, one], print)
    with pytest.raises(InputError, match="nothing is known of the items in words"):
        combine([one, made(tmp_path, "bare", titled=False)], print)


def test_other_texts_make_another_whole_and_a_damaged_one_is_made_anew(tmp_path: Path):
    one = made(tmp_path, "one")
    before = combine([one], print)
    log = tmp_path / "one.jsonl"
    log.write_text(log.read_text().replace('"title": "one"', '"title": "better"'))
    again = tmp_path / "again"
    table = pa.table({"user": ["u", "u", "v", "v"], "item": ["a", "b", "b", "c"]})
    config = DataConfig(items=str(log))
    better = prepare(source_from_table(table, Columns(), "one"), again, config, report=print)
    assert better.fingerprint == one.fingerprint
    after = combine([better], print)
    assert after != before
    assert SequenceDataset.load(after).catalogue["title"].to_pylist()[0] == "better"
    (after / "sequences.arrow").write_bytes(b"cut")
    assert combine([better], print) == after
    assert SequenceDataset.load(after).num_items == 3
