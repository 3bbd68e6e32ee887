"""The index of a run: built beside its weights and tied to them, measured against exact search."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.batch import Batch
from recsys.checkpoint import WEIGHTS, load_model, read_json, sha256_of, write_json
from recsys.errors import InputError
from recsys.models.base import SequenceModel
from recsys.retrieval.faiss_index import (
    LISTED,
    Index,
    IndexKind,
    build_index,
    exact_items,
    known_kind,
    map_index,
    recall,
    write_index,
)

INDEX, FACTS = "index.faiss", "index.json"
HNSW_FROM, IVFPQ_FROM = 200_000, 4_000_000
"""Items from which `auto` takes these kinds. Below the first, exact search is fast: a saved index
is used only where it is asked for."""
AUTO = "auto"
QUERIES = 512
"""Queries that an index is tuned on, and as many others that recall and latency are measured on."""


def chosen_kind(items: int) -> tuple[IndexKind, str]:
    """(the kind that `auto` takes for a catalogue of so many items, why)."""
    if items < HNSW_FROM:
        return "flat", f"{items:,} items: below {HNSW_FROM:,} exact search is fast enough"
    if items < IVFPQ_FROM:
        return "hnsw", f"{items:,} items: from {HNSW_FROM:,} on a graph is faster than exact search"
    return "ivfpq", f"{items:,} items: from {IVFPQ_FROM:,} on only rounded vectors are small enough"


def build_run_index(run: Path, kind: str) -> dict[str, Any]:
    """Build RUN/index.faiss of a kind, or of one chosen by size for `auto`, and measure it.

    {kind, why (for auto), items, dim, seconds (of building), recall@10 against exact search, p50_ms
    and p99_ms of one query on one thread, mb of the file}, on queries of the run's own model.
    """
    if kind != AUTO:
        known_kind(kind, (AUTO,))
    model = load_model(run)
    if not isinstance(model, SequenceModel):
        raise InputError(f"{run} holds a model without item vectors: it has nothing to index")
    with torch.inference_mode():
        vectors = model.item_vectors()[1:].float().numpy()
    chosen, why = chosen_kind(len(vectors)) if kind == AUTO else (kind, None)
    queries_QD = _queries(model, len(vectors))
    started = time.perf_counter()
    index = build_index(vectors, chosen, queries_QD=queries_QD[:QUERIES])
    seconds = time.perf_counter() - started
    save_index(run, index, vectors.shape[1])
    return {
        "kind": index.kind,
        **({} if why is None else {"why": why}),
        "items": len(vectors),
        "dim": vectors.shape[1],
        "seconds": round(seconds, 4),
        **measured(index, vectors, queries_QD[QUERIES:]),
        "mb": round((run / INDEX).stat().st_size / 1e6, 3),
    }


def save_index(run: Path, index: Index, dim: int) -> None:
    """Write the index beside the weights of a run, and what ties the two together."""
    write_index(run / INDEX, index)
    facts = {
        "kind": index.kind,
        "items": index.faiss_index.ntotal,
        "dim": dim,
        **({"nprobe": index.nprobe} if index.kind in LISTED else {}),
        "weights_sha256": sha256_of(run / WEIGHTS),
        "index_sha256": sha256_of(run / INDEX),
    }
    write_json(run / FACTS, facts)


def load_index(run: Path, *, vectors: np.ndarray | None = None) -> Index:
    """The index of a run, memory-mapped.

    `vectors` float32 [V, D] are the model's, row i-1 for item i: kinds that round theirs score with
    them. InputError if there is no index, or it is damaged or of other weights or vectors.
    """
    if not (run / INDEX).is_file():
        raise InputError(f"{run} has no index: build one with `recsys index {run} --type hnsw`")
    try:
        facts = read_json(run / FACTS)
        kind, items, dim = known_kind(facts["kind"]), _count(facts["items"]), _count(facts["dim"])
        nprobe = _count(facts["nprobe"]) if kind in LISTED else 0
        index_sha256, weights_sha256 = facts["index_sha256"], facts["weights_sha256"]
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run / FACTS} is damaged ({error}); run `recsys index {run} --type …` again"
        ) from None
    again = f"run `recsys index {run} --type {kind}` again"
    # Checked before faiss parses a byte: its reader trusts what it reads. Both at once: sums of
    # large files are most of what a start costs.
    with ThreadPoolExecutor(2) as pool:
        index_found, weights_found = pool.map(sha256_of, (run / INDEX, run / WEIGHTS))
    if index_sha256 != index_found:
        raise InputError(f"{run / INDEX} is damaged; {again}")
    if weights_sha256 != weights_found:
        raise InputError(f"{run / INDEX} was built for other weights than {WEIGHTS}; {again}")
    try:
        faiss_index = map_index(run / INDEX, kind, items, dim)
    except ValueError as error:
        raise InputError(f"{run / FACTS} is damaged: {error}; {again}") from None
    if kind in LISTED and nprobe > faiss_index.nlist:
        raise InputError(
            f"{run / FACTS} is damaged: nprobe is {nprobe:,}, {INDEX} has {faiss_index.nlist:,}"
            f" lists; {again}"
        )
    if vectors is not None and vectors.shape != (items, dim):
        raise InputError(f"{run / INDEX} is over [{items}, {dim}], the vectors {vectors.shape}")
    return Index(kind, faiss_index, nprobe, vectors, version=index_sha256[:12])


def measured(index: Index, vectors: np.ndarray, queries_QD: np.ndarray) -> dict[str, float]:
    """{recall@10 against exact, p50_ms and p99_ms of one query on one thread}."""
    k = min(10, len(vectors))
    found_QK, _ = index.search(queries_QD, k)
    times = []
    for query_D in queries_QD:
        started = time.perf_counter()
        index.search(query_D[None], k)
        times.append((time.perf_counter() - started) * 1e3)
    return {
        "recall@10": recall(found_QK, exact_items(vectors, queries_QD, k)),
        "p50_ms": round(float(np.median(times)), 4),
        "p99_ms": round(float(np.quantile(times, 0.99)), 4),
    }


@torch.inference_mode()
def _queries(model: SequenceModel, num_items: int) -> np.ndarray:
    """[2Q, D] float32 queries of the model after one to three items drawn by a fixed seed."""
    random = np.random.default_rng(0)
    history_QT = torch.from_numpy(random.integers(1, num_items + 1, size=(2 * QUERIES, 3)))
    lengths_Q = torch.from_numpy(random.integers(1, min(3, model.max_len) + 1, size=2 * QUERIES))
    steps = int(lengths_Q.max())
    real_QT = torch.arange(steps) < lengths_Q[:, None]
    times_QT = torch.arange(steps) * real_QT  # for models that see time
    batch = Batch(history_QT[:, :steps] * real_QT, lengths_Q, times_QT)
    return model.query(batch).float().numpy()


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} where a number of at least 1 belongs")
    return value
