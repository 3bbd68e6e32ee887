"""Recommendations for all users: the file holds what the Retriever says of each of them."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from untrained import ITEMS, USERS, history_of_users, log, open_shop, rows_of_users, saved_run

from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError
from recsys.retrieval import Retriever, all_users
from recsys.retrieval.all_users import as_record, recommend_all
from recsys.run import prepare


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_shop(tmp_path_factory.mktemp("shop"))


def test_the_file_has_raw_ids_ranks_and_scores(shop, tmp_path):
    out = tmp_path / "deep" / "out.parquet"
    report = recommend_all(shop / "sasrec", Retriever.load(shop / "sasrec"), out, 5)
    assert pq.read_schema(out).remove_metadata() == pa.schema(
        {"user": pa.int64(), "rank": pa.int32(), "item": pa.string(), "score": pa.float32()}
    )
    assert os.listdir(out.parent) == ["out.parquet"]
    assert report["out"] == str(out)
    assert report["users"] == USERS
    assert report["rows"] == pq.read_metadata(out).num_rows
    assert report["seconds"] >= 0


@pytest.mark.parametrize("name", ["sasrec", "popular"])
def test_every_user_has_k_rows_or_all_that_is_left_and_nothing_seen(shop, tmp_path, name):
    out = tmp_path / "out.parquet"
    recommend_all(shop / name, Retriever.load(shop / name), out, 10)
    found = rows_of_users(out)
    for user, history in history_of_users().items():
        rows = found.get(user, [])
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) == min(10, ITEMS - len(set(history)))
        assert not {row["item"] for row in rows} & set(history)
    assert set(found) == set(history_of_users()) - {30}


@pytest.mark.parametrize("batch", [1, 7, 1024])
@pytest.mark.parametrize("name", ["sasrec", "popular"])
def test_every_user_gets_what_the_retriever_recommends(shop, tmp_path, monkeypatch, name, batch):
    monkeypatch.setattr(all_users, "BATCH", batch)
    monkeypatch.setattr(all_users, "BLOCK", 3 * batch)
    retriever = Retriever.load(shop / name)
    recommend_all(shop / name, retriever, tmp_path / "out.parquet", 7)
    found = rows_of_users(tmp_path / "out.parquet")
    for user, history in history_of_users().items():
        wanted, rows = retriever.recommend(history, 7), found.get(user, [])
        assert [row["item"] for row in rows] == wanted.items
        assert [row["score"] for row in rows] == pytest.approx(wanted.scores, rel=1e-4, abs=1e-4)


def test_users_stand_in_the_order_of_the_data_set(shop, tmp_path):
    retriever = Retriever.load(shop / "sasrec")
    recommend_all(shop / "sasrec", retriever, tmp_path / "out.parquet", 1)
    users = pq.read_table(tmp_path / "out.parquet")["user"].to_pylist()
    assert users == [user for user in history_of_users() if user != 30]


def test_through_a_flat_index_is_exact(shop, tmp_path):
    for through in ("exact", "index"):
        retriever = Retriever.load(shop / "sasrec", index=through)
        recommend_all(shop / "sasrec", retriever, tmp_path / through, 10)
    exact, found = (pq.read_table(tmp_path / name) for name in ("exact", "index"))
    for column in ("user", "rank", "item"):
        assert found[column].equals(exact[column])
    np.testing.assert_allclose(found["score"], exact["score"], rtol=1e-4, atol=1e-4)


def test_more_than_the_catalogue_is_all_that_was_not_seen(shop, tmp_path):
    retriever = Retriever.load(shop / "sasrec")
    report = recommend_all(shop / "sasrec", retriever, tmp_path / "out.parquet", 1000)
    assert report["rows"] == sum(ITEMS - len(set(seen)) for seen in history_of_users().values())


def test_data_that_has_moved_is_named(shop, tmp_path):
    run = saved_run(tmp_path / "run", SequenceDataset.load(shop / "data"), tmp_path / "gone")
    out = tmp_path / "out.parquet"
    with pytest.raises(InputError, match="gone"):
        recommend_all(run, Retriever.load(run), out, 5)
    assert not out.exists()
    recommend_all(run, Retriever.load(run), out, 5, shop / "data")
    recommend_all(shop / "sasrec", Retriever.load(shop / "sasrec"), tmp_path / "there", 5)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "there"))


def test_other_data_is_refused(shop, tmp_path):
    prepare(log(seed=1), tmp_path / "other")
    run, out = shop / "sasrec", tmp_path / "out.parquet"
    with pytest.raises(
        InputError, match=r"was trained on data .* [0-9a-f]{12}, this is dataframe [0-9a-f]{12}$"
    ):
        recommend_all(run, Retriever.load(run), out, 5, tmp_path / "other")
    assert not out.exists()


@pytest.mark.parametrize("k", [0, -3])
def test_less_than_one_item_is_refused(shop, tmp_path, k):
    run, out = shop / "sasrec", tmp_path / "out.parquet"
    with pytest.raises(InputError, match=f"whole number from 1, got {k}"):
        recommend_all(run, Retriever.load(run), out, k)
    assert not out.exists()


@pytest.mark.parametrize(
    ("cut", "seen", "masked"),
    [
        ({}, None, True),
        ({"kind": "sessions"}, None, False),
        ({"seen": "keep"}, None, False),
        ({}, "keep", False),
        ({"kind": "sessions"}, "mask", True),
    ],
)
def test_the_split_says_whether_seen_items_come_back_unless_the_call_does(
    shop, tmp_path, cut, seen, masked
):
    dataset = SequenceDataset.load(shop / "data")
    run = saved_run(tmp_path / "run", dataset, shop / "data", cut=cut)
    retriever, out = Retriever.load(run), tmp_path / "out.parquet"
    recommend_all(run, retriever, out, 7, seen=seen)
    found = rows_of_users(out)
    for user, history in history_of_users().items():
        wanted = retriever.recommend(history, 7, exclude_seen=masked)
        assert [row["item"] for row in found.get(user, [])] == wanted.items


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seen": "msak"}, "seen is mask or keep, got 'msak'"),
        ({"users_a_part": 0}, "users_a_part takes a whole number from 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(shop, tmp_path, options, said):
    run = shop / "sasrec"
    with pytest.raises(InputError, match=said):
        recommend_all(run, Retriever.load(run), tmp_path / "out", 5, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_the_file_is_refused_before_the_work(shop, tmp_path):
    with pytest.raises(InputError, match="--out takes a file"):
        recommend_all(shop / "sasrec", Retriever.load(shop / "sasrec"), tmp_path, 5)


def test_a_record_says_everything_that_the_retriever_says(shop):
    found = Retriever.load(shop / "popular").recommend(["i3", "x"], 2)
    record = as_record(found)
    assert [entry["item"] for entry in record["items"]] == found.items
    assert [entry["score"] for entry in record["items"]] == found.scores
    assert [entry["title"] for entry in record["items"]] == [None, None]
    assert (record["unknown"], record["fallback"], record["short"]) == (["x"], None, None)
    assert (record["model_version"], record["index_version"]) == (found.model_version, None)
