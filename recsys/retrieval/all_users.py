"""Recommendations for every user of a data set, into a Parquet file."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys.checkpoint import DATA_FACTS, read_config, written_whole
from recsys.data.loader import collate, flat_positions
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError
from recsys.retrieval.retriever import Recommendations, Retriever

BATCH = 1024
"""Users scored at a time."""
BLOCK = 16 * BATCH
"""Users written at a time, in their order; those of like length in a block are scored together."""


def recommend_all(
    run: Path, retriever: Retriever, out: Path, k: int, data: Path | None = None
) -> dict[str, Any]:
    """Write `out` with columns user, rank (from 1), item and score; a row a recommendation.

    Every user's whole history is the question, and what is in it is not recommended again. `data`
    names the prepared folder where it is no longer where the run was trained.
    """
    import pyarrow.parquet as pq

    about = read_config(run, DATA_FACTS)["dataset"]
    dataset = SequenceDataset.load(data or about["path"])
    if dataset.fingerprint != about["fingerprint"]:
        raise InputError(
            f"{run} was trained on other data than {dataset.name} in {data or about['path']}"
        )
    if k < 1:
        raise InputError(f"-k takes a whole number from 1, got {k}")
    started = time.perf_counter()
    raw_items = retriever.vocab.raw_ids
    schema = pa.schema(
        [
            ("user", dataset.users.type),
            ("rank", pa.int32()),
            ("item", raw_items.type),
            ("score", pa.float32()),
        ]
    )
    users = np.flatnonzero(np.diff(dataset.offsets) > 0)
    rows = 0
    with written_whole(out) as aside, pq.ParquetWriter(aside, schema) as writer:
        for first in range(0, len(users), BLOCK):
            block = users[first : first + BLOCK]
            items_BK, scores_BK = _recommend(retriever, dataset, block, k)
            user, place = np.nonzero(items_BK > 0)
            items = items_BK[user, place]
            columns = [
                dataset.users.take(pa.array(block[user])),
                pa.array(place + 1, type=pa.int32()),
                raw_items.take(pa.array(items - 1)),
                pa.array(scores_BK[user, place], type=pa.float32()),
            ]
            writer.write_table(pa.table(columns, schema=schema))
            rows += len(items)
    seconds = time.perf_counter() - started
    return {"out": str(out), "users": len(users), "rows": rows, "seconds": round(seconds, 3)}


def as_record(found: Recommendations) -> dict[str, Any]:
    """Recommendations as JSON values."""
    titles = found.titles or [None] * len(found.items)
    return {
        "items": [
            {"item": item, "title": title, "score": score}
            for item, title, score in zip(found.items, titles, found.scores, strict=True)
        ],
        "unknown": found.unknown,
        "fallback": found.fallback,
    }


def _recommend(
    retriever: Retriever, dataset: SequenceDataset, users: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """([users, K] item numbers, 0 where there is no further one; [users, K] scores)."""
    start, end = dataset.offsets[users], dataset.offsets[users + 1]
    cut = np.maximum(start, end - retriever.max_len)
    order = np.argsort(end - cut, kind="stable")
    parts = []
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        row, position = flat_positions(start[rows], end[rows])
        seen = (torch.from_numpy(row), torch.from_numpy(dataset.items[position].astype(np.int64)))
        batch = collate(dataset, cut[rows], end[rows])
        parts.append(retriever.recommend_items(batch, k, seen=seen))
    items, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    back = np.argsort(order)
    return items[back], scores[back]
