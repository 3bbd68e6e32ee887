"""FAISS indexes over item vectors: built beside a run, tied to its weights, measured against exact.

faiss is imported here only, when an index is built or read, and after torch: loading the two in the
other order crashes on some platforms.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from recsys.batch import Batch
from recsys.checkpoint import WEIGHTS, load_model, read_json, write_json, written_whole
from recsys.errors import InputError, nearest
from recsys.models.base import SequenceModel

IndexKind = Literal["flat", "hnsw"]
EXTRA_DIMS: dict[str, int] = {"flat": 0, "hnsw": 1}
"""Coordinates behind the vectors' own, in each kind of index (see `build_index`)."""
KINDS = tuple(EXTRA_DIMS)
INDEX, FACTS = "index.faiss", "index.json"
HNSW_LINKS = 32
HNSW_BUILD = 200
HNSW_SEARCH = 128
QUERIES = 512
"""Queries that recall and latency are measured on."""


@dataclass(frozen=True)
class Index:
    """A built index over items 1..V. Searching changes nothing, so threads may share it."""

    kind: IndexKind
    faiss_index: Any

    def search(self, query_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """([B, k] int64 items, best first, 0 where there are no more; [B, k] float32 inner
        products).

        query_BD float32 [B, D].
        """
        if extra_dims := EXTRA_DIMS[self.kind]:
            extra = np.zeros((len(query_BD), extra_dims), np.float32)
            query_BD = np.concatenate([query_BD, extra], axis=1)
        k = min(k, self.faiss_index.ntotal)
        if self.kind == "hnsw":
            # A search that keeps fewer candidates than it returns would come back short.
            wide = _faiss().SearchParametersHNSW(efSearch=max(HNSW_SEARCH, 2 * k))
            scores_BK, position_BK = self.faiss_index.search(
                np.ascontiguousarray(query_BD), k, params=wide
            )
        else:
            scores_BK, position_BK = self.faiss_index.search(np.ascontiguousarray(query_BD), k)
        return position_BK + 1, scores_BK


def build_index(item_vectors: np.ndarray, kind: str) -> Index:
    """An index over item_vectors float32 [V, D], row i-1 for item i, by inner product.

    HNSW walks a graph of near neighbours, which maximum inner product is not. One more coordinate,
    sqrt(R^2 - |v|^2) with R the longest norm, makes all items equally long (Bachrach et al. 2014):
    the graph then has neighbours by angle, and with 0 in that place a query's products stay what
    they were.
    """
    if kind not in KINDS:
        raise InputError(
            f"unknown index type {kind!r}{nearest(kind, KINDS)} (types: {', '.join(KINDS)})"
        )
    faiss = _faiss()
    vectors = np.ascontiguousarray(item_vectors, dtype=np.float32)
    if kind == "flat":
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return Index("flat", index)
    norm = (vectors.astype(np.float64) ** 2).sum(axis=1)
    extra = np.sqrt(np.maximum(norm.max() - norm, 0)).astype(np.float32)[:, None]
    index = faiss.IndexHNSWFlat(vectors.shape[1] + 1, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_BUILD
    index.add(np.concatenate([vectors, extra], axis=1))
    return Index("hnsw", index)


def build_run_index(run: Path, kind: str) -> dict[str, Any]:
    """Build RUN/index.faiss and measure it: {kind, items, dim, seconds, recall@10, latency_ms}."""
    model = load_model(run)
    if not isinstance(model, SequenceModel):
        raise InputError(f"{run} holds a model without item vectors: it has nothing to index")
    with torch.inference_mode():
        vectors = model.item_vectors()[1:].float().numpy()
    started = time.perf_counter()
    index = build_index(vectors, kind)
    seconds = time.perf_counter() - started
    faiss = _faiss()
    with written_whole(run / INDEX) as aside:
        # Through Python's own write: faiss would not notice a disk that is full at the last block.
        aside.write_bytes(faiss.serialize_index(index.faiss_index))
    facts = {
        "kind": kind,
        "items": len(vectors),
        "dim": vectors.shape[1],
        "weights_sha256": _sha256(run / WEIGHTS),
        "index_sha256": _sha256(run / INDEX),
    }
    write_json(run / FACTS, facts)
    recall, latency = _measure(index, vectors, _queries(model, len(vectors)))
    return {
        "kind": kind,
        "items": len(vectors),
        "dim": vectors.shape[1],
        "seconds": round(seconds, 4),
        "recall@10": recall,
        "latency_ms": round(latency, 4),
    }


def load_index(run: Path) -> Index:
    """The index of a run. InputError if there is none, or it is damaged or of other weights."""
    if not (run / INDEX).is_file():
        raise InputError(f"{run} has no index: build one with `recsys index {run} --type hnsw`")
    try:
        facts = read_json(run / FACTS)
        kind, width = facts["kind"], int(facts["dim"]) + EXTRA_DIMS[facts["kind"]]
        index_sha256, weights_sha256 = facts["index_sha256"], facts["weights_sha256"]
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run / FACTS} is damaged ({error!r}); run `recsys index {run} --type …` again"
        ) from None
    again = f"run `recsys index {run} --type {kind}` again"
    # Checked before faiss parses a byte: its reader trusts what it reads.
    if index_sha256 != _sha256(run / INDEX):
        raise InputError(f"{run / INDEX} is damaged; {again}")
    if weights_sha256 != _sha256(run / WEIGHTS):
        raise InputError(f"{run / INDEX} was built for other weights than {WEIGHTS}; {again}")
    index = _faiss().read_index(str(run / INDEX))
    if index.d != width:
        raise InputError(f"{run / FACTS} is damaged: {run / INDEX} has {index.d} axes; {again}")
    return Index(kind, index)


@torch.inference_mode()
def _queries(model: SequenceModel, num_items: int) -> np.ndarray:
    """[Q, D] float32 queries of the model after one to three items drawn by a fixed seed."""
    random = np.random.default_rng(0)
    history_QT = torch.from_numpy(random.integers(1, num_items + 1, size=(QUERIES, 3)))
    lengths_Q = torch.from_numpy(random.integers(1, min(3, model.max_len) + 1, size=QUERIES))
    steps = int(lengths_Q.max())
    real_QT = torch.arange(steps) < lengths_Q[:, None]
    return model.query(Batch(history_QT[:, :steps] * real_QT, lengths_Q)).float().numpy()


def _measure(index: Index, vectors: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
    """(recall of the first 10 against exact, median ms of one query)."""
    k = min(10, len(vectors))
    exact = torch.topk(torch.from_numpy(queries @ vectors.T), k, dim=1).indices.numpy() + 1
    found, _ = index.search(queries, k)
    recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(found, exact, strict=True)])
    times = []
    for query in queries[:100]:
        started = time.perf_counter()
        index.search(query[None], k)
        times.append(time.perf_counter() - started)
    return float(recall), float(np.median(times) * 1e3)


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the run folder is not whole") from None


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise InputError(
            "an index needs FAISS: pip install faiss-cpu; exact search works without"
        ) from None
    return faiss
