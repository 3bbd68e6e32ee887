"""Runs of fixed random weights, and a small shop with two of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys.checkpoint import CONFIG, WEIGHTS, build_model, write_items, write_json, write_tensors
from recsys.config import to_dict
from recsys.data.sequences import SequenceDataset
from recsys.models.base import Recommender, model_class
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


def random_model(name: str, settings: dict[str, Any], num_items: int, seed: int = 0) -> Recommender:
    """A model whose every weight is drawn from a normal distribution."""
    torch.manual_seed(seed)
    model = build_model(name, settings, num_items)
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor)
    return model


def write_run(
    run: Path,
    model: Recommender,
    name: str,
    settings: dict[str, Any],
    catalogue: pa.Table,
    **facts: dict[str, Any],
) -> Path:
    """The run folder of a model that no training made; `facts` go to its config.json."""
    described = {"name": name, **to_dict(model_class(name).Config(**settings))}
    about = {"dataset": {"items": catalogue.num_rows}, **facts}
    write_json(run / CONFIG, {"model": described, **about})
    write_tensors(run / WEIGHTS, model.state_dict())
    write_items(run, catalogue)
    return run


def saved_run(
    run: Path,
    dataset: SequenceDataset,
    data: Path,
    name: str = "sasrec",
    cut: dict[str, str] | None = None,
) -> Path:
    settings = {"dim": 8, "max_len": MAX_LEN} if name == "sasrec" else {}
    model = random_model(name, settings, dataset.num_items)
    if name == "popular":
        model.counts_V = torch.randperm(dataset.num_items + 1).float()
    about = {
        "name": dataset.name,
        "path": str(data),
        "items": dataset.num_items,
        "fingerprint": dataset.fingerprint,
    }
    return write_run(run, model, name, settings, dataset.catalogue, dataset=about, split=cut or {})


def open_shop(folder: Path) -> Path:
    """A folder with the data set `data` and the runs `sasrec` (with an index) and `popular`."""
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
