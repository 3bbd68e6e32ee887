"""Recommendations for every user of a data set, into a Parquet file."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from recsys.checkpoint import (
    DATA_FACTS,
    WEIGHTS,
    data_of_run,
    read_config,
    read_split,
    sha256_of,
)
from recsys.data.loader import collate, flat_positions
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError, Interrupted
from recsys.retrieval.answers import FEWEST
from recsys.retrieval.index import INDEX
from recsys.retrieval.parts import Parts
from recsys.retrieval.processes import processes
from recsys.retrieval.retriever import Recommendations, Retriever, Through

PART = 65_536
"""Users a part: what is lost at most when the work is stopped."""
BATCH = 1024
"""Users scored at a time, at most."""
SCORES = 2**21
"""Scores in memory at a time, 8 MB: the allocator takes tens of megabytes from the system each time
anew, page by page. A larger catalogue is scored for fewer users together."""
BLOCK = 16 * BATCH
"""Users written at a time, at most; those of like length in a block are scored together."""
ROWS = 2**20
"""Rows written at a time: fewer users are written together where each gets many."""


def recommend_all(
    run: Path,
    retriever: Retriever,
    out: Path,
    k: int,
    data: Path | None = None,
    seen: Literal["mask", "keep"] | None = None,
    through: Through = "auto",
    *,
    users_a_part: int = PART,
) -> dict[str, Any] | None:
    """Write `out` with columns user, rank (from 1), item and score; a row a recommendation, the
    users in the order of the data set.

    Every user's whole history is the question. `seen` says whether what is in it is taken out of
    the answer ("mask") or not; where not given the run's split says so. `data` names the prepared
    folder where it is no longer where the run was trained. `through` is how `retriever` was loaded.

    The work is cut into parts of `users_a_part`, kept in OUT.parts until all are there: a call that
    was stopped is gone on with by the same call. Under torchrun the processes share the parts; the
    report {out, users, rows, seconds, parts, resumed} comes back in the first, None in the others.

    Raises InputError for other data, or where the parts that are there are of another plan;
    WorkError where another process failed; Interrupted on Ctrl-C, once a part is written.
    """
    config = read_config(run, {**DATA_FACTS, "split": dict})
    dataset = data_of_run(run, config, None if data is None else SequenceDataset.load(data))
    if k < 1:
        raise InputError(f"-k takes a whole number from 1, got {k}")
    if users_a_part < 1:
        raise InputError(f"users_a_part takes a whole number from 1, got {users_a_part}")
    if seen not in (None, "mask", "keep"):
        raise InputError(f"seen is mask or keep, got {seen!r}")
    if out.is_dir():
        raise InputError(f"--out takes a file, {out} is a folder")
    started = time.perf_counter()
    seen = seen or read_split(run, config).seen_items
    users = np.flatnonzero(np.diff(dataset.offsets) > 0)
    count = -(-len(users) // users_a_part)
    may_index = through != "exact" and (run / INDEX).is_file()
    plan = {
        "weights_sha256": sha256_of(run / WEIGHTS),
        "data_fingerprint": dataset.fingerprint,
        "items": len(retriever.vocab),
        "k": k,
        "seen": seen,
        "through": through,
        "index_sha256": sha256_of(run / INDEX) if may_index else None,
        "users": len(users),
        "users_a_part": users_a_part,
        "parts": count,
    }
    parts = Parts(out, _schema(retriever, dataset), plan)
    with processes() as team:
        if team.is_first:
            parts.open()
        team.total(0)
        resumed = 0
        with _gone_on_with(parts, alone=team.count == 1):
            for number in range(team.rank, count, team.count):
                if parts.is_whole(number):
                    resumed += 1
                    continue
                own = users[number * users_a_part : (number + 1) * users_a_part]
                parts.write(number, _tables(retriever, dataset, own, k, seen == "mask"))
        resumed = team.total(resumed)
        if not team.is_first:
            return None
        rows = parts.join(count)
    return {
        "out": str(out),
        "users": len(users),
        "rows": rows,
        "seconds": round(time.perf_counter() - started, 3),
        "parts": count,
        "resumed": resumed,
    }


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
        "short": found.short,
        "model_version": found.model_version,
        "index_version": found.index_version,
    }


@contextmanager
def _gone_on_with(parts: Parts, alone: bool) -> Iterator[None]:
    """Where the work is stopped, say how it goes on; nothing is left where there is no part yet."""
    try:
        yield
    except BaseException as error:
        written = len(parts.written())
        if alone and not written:
            parts.remove()
        if isinstance(error, KeyboardInterrupt) and written:
            raise Interrupted(
                f"stopped with {written} of {parts.plan['parts']} parts written: the same command"
                " goes on with the others"
            ) from None
        raise


def _schema(retriever: Retriever, dataset: SequenceDataset) -> pa.Schema:
    return pa.schema(
        [
            ("user", dataset.users.type),
            ("rank", pa.int32()),
            ("item", retriever.vocab.raw_ids.type),
            ("score", pa.float32()),
        ]
    )


def _tables(
    retriever: Retriever, dataset: SequenceDataset, users: np.ndarray, k: int, mask: bool
) -> Iterator[pa.Table]:
    """The rows of these users, some users at a time."""
    schema, raw_items = _schema(retriever, dataset), retriever.vocab.raw_ids
    size = min(BLOCK, max(1, ROWS // k))
    for first in range(0, len(users), size):
        block = users[first : first + size]
        items_BK, scores_BK = _recommend(retriever, dataset, block, k, mask)
        user, place = np.nonzero(items_BK > 0)
        columns = [
            dataset.users.take(pa.array(block[user])),
            pa.array(place + 1, type=pa.int32()),
            raw_items.take(pa.array(items_BK[user, place] - 1)),
            pa.array(scores_BK[user, place], type=pa.float32()),
        ]
        yield pa.table(columns, schema=schema)


def _recommend(
    retriever: Retriever, dataset: SequenceDataset, users: np.ndarray, k: int, mask: bool
) -> tuple[np.ndarray, np.ndarray]:
    """([users, K] item numbers, 0 where there is no further one; [users, K] scores)."""
    start, end = dataset.offsets[users], dataset.offsets[users + 1]
    cut = np.maximum(start, end - retriever.max_len)
    # Longest first: the memory of one batch then serves all behind it.
    order = np.argsort(cut - end, kind="stable")
    size = min(BATCH, max(FEWEST, SCORES // (len(retriever.vocab) + 1)))
    found = []
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        seen = None
        if mask:
            row, position = flat_positions(start[rows], end[rows])
            items = dataset.items[position].astype(np.int64)
            seen = (torch.from_numpy(row), torch.from_numpy(items))
        batch = collate(dataset, cut[rows], end[rows])
        found.append(retriever.recommend_items(batch, k, seen=seen))
    items_BK, scores_BK = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    back = np.argsort(order)
    return items_BK[back], scores_BK[back]
