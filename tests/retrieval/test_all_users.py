"""Recommendations for all users: the file holds what the Retriever says of each of them."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.checkpoint import CONFIG, WEIGHTS, build_model, write_items, write_json, write_tensors
from recsys.config import to_dict
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError
from recsys.models.base import model_class
from recsys.retrieval import Retriever, all_users
from recsys.retrieval.all_users import as_record, recommend_all
from recsys.retrieval.index import build_run_index
from recsys.run import prepare

ITEMS, USERS, MAX_LEN = 25, 60, 5


def log(seed: int = 0) -> pa.Table:
    """Users with 1 to 20 interactions each; one has had every item."""
    random = np.random.default_rng(seed)
    histories = [random.integers(ITEMS, size=size) for size in random.integers(1, 21, USERS - 1)]
    histories.insert(3, np.arange(ITEMS))
    users = np.repeat(np.arange(USERS), [len(history) for history in histories])
    items = np.concatenate(histories)
    return pa.table(
        {
            "user": users * 10,
            "item": [f"i{item}" for item in items],
            "time": np.arange(len(items)),
        }
    )


def saved_run(run: Path, dataset: SequenceDataset, data: Path, name: str = "sasrec") -> Path:
    settings = {"dim": 8, "max_len": MAX_LEN} if name == "sasrec" else {}
    torch.manual_seed(0)
    model = build_model(name, settings, dataset.num_items)
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor)
    if name == "popular":
        model.counts_V = torch.randperm(dataset.num_items + 1).float()
    about = {"items": dataset.num_items, "fingerprint": dataset.fingerprint, "path": str(data)}
    described = {"name": name, **to_dict(model_class(name).Config(**settings))}
    write_json(run / CONFIG, {"model": described, "dataset": about})
    write_tensors(run / WEIGHTS, model.state_dict())
    write_items(run, dataset.catalogue)
    return run


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `data` and the runs `sasrec` and `popular`."""
    folder = tmp_path_factory.mktemp("shop")
    dataset = prepare(log(), folder / "data")
    for name in ("sasrec", "popular"):
        saved_run(folder / name, dataset, folder / "data", name)
    build_run_index(folder / "sasrec", "flat")
    return folder


def history_of_users() -> dict[int, list[str]]:
    histories: dict[int, list[str]] = {}
    for row in log().to_pylist():
        histories.setdefault(row["user"], []).append(row["item"])
    return histories


def rows_of_users(path: Path) -> dict[int, list[dict]]:
    rows: dict[int, list[dict]] = {}
    for row in pq.read_table(path).to_pylist():
        rows.setdefault(row["user"], []).append(row)
    return rows


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
    with pytest.raises(InputError, match=r"was trained on other data than .*other"):
        recommend_all(run, Retriever.load(run), out, 5, tmp_path / "other")
    assert not out.exists()


@pytest.mark.parametrize("k", [0, -3])
def test_less_than_one_item_is_refused(shop, tmp_path, k):
    run, out = shop / "sasrec", tmp_path / "out.parquet"
    with pytest.raises(InputError, match=f"whole number from 1, got {k}"):
        recommend_all(run, Retriever.load(run), out, k)
    assert not out.exists()


def test_an_interruption_leaves_the_old_file_and_nothing_beside_it(shop, tmp_path, monkeypatch):
    class Stopping(Retriever):
        calls = 0

        def recommend_items(self, *arguments, **options):
            self.calls += 1
            if self.calls > 2:
                raise KeyboardInterrupt
            return super().recommend_items(*arguments, **options)

    monkeypatch.setattr(all_users, "BLOCK", 10)
    out = tmp_path / "out.parquet"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        recommend_all(shop / "sasrec", Stopping.load(shop / "sasrec"), out, 5)
    assert out.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_a_record_says_everything_that_the_retriever_says(shop):
    found = Retriever.load(shop / "popular").recommend(["i3", "x"], 2)
    record = as_record(found)
    assert [entry["item"] for entry in record["items"]] == found.items
    assert [entry["score"] for entry in record["items"]] == found.scores
    assert [entry["title"] for entry in record["items"]] == [None, None]
    assert (record["unknown"], record["fallback"]) == (["x"], None)
