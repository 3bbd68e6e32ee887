"""FAISS indexes over item vectors: building, searching, reading and writing them.

faiss is imported here only, when an index is built or read, and after torch: loading the two in the
other order crashes on some platforms.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from recsys.errors import InputError, nearest
from recsys.whole import written_whole

IndexKind = Literal["flat", "hnsw", "ivf", "ivfpq", "sq"]
CLASSES: dict[IndexKind, str] = {
    "flat": "IndexFlatIP",
    "hnsw": "IndexHNSWFlat",
    "ivf": "IndexIVFFlat",
    "ivfpq": "IndexIVFPQ",
    "sq": "IndexIVFScalarQuantizer",
}
"""What each kind is in FAISS."""
KINDS = tuple(CLASSES)
LISTED = ("ivf", "ivfpq", "sq")
"""Kinds that cut the items into lists and read some of the lists."""
ROUNDED = ("ivfpq", "sq")
"""Kinds that keep vectors in a byte or half a byte a coordinate: their scores are estimates."""

HNSW_LINKS = 32
HNSW_BUILD = 100
HNSW_SEARCH = 256
HNSW_SHORTER = 0.75
"""Share of the items that the coordinate of HNSW makes equally long; see `_graph`."""
SCAN_SHARE = 200
"""HNSW reads all items in order when more than a share of one in so many is asked for: a walk
through the graph that keeps as many candidates takes longer."""
POINTS_PER_LIST = 39
"""Items that k-means wants for each list."""
CODES = 256
"""Values of a byte of a code, each learned from the vectors."""
OVERFETCH = 10
"""Candidates for each item asked for that are scored again with exact vectors."""
RECALL_WANTED = 0.96
"""Recall@10 that the lists read in a search are chosen for; 0.95 is left where it is measured on
other queries."""
TUNING_QUERIES = 256


@dataclass(frozen=True)
class Index:
    """A built index over items 1..V. Searching changes nothing, so threads may share it."""

    kind: IndexKind
    faiss_index: Any
    nprobe: int = 0
    """Lists that a search for a few items reads (ivf, ivfpq, sq)."""
    vectors: np.ndarray | None = None
    """float32 [V, D], may be memory-mapped: ivfpq and sq score their candidates again with them.
    Without them scores are estimates."""
    version: str | None = None
    """What tells it from others: the start of its file's checksum; None for one in no file."""

    def search(
        self, query_BD: np.ndarray, k: int, *, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """([B, k] int64 items, best first, 0 where there are no more; [B, k] float32 inner
        products, -inf where there is no item). k is cut to V.

        query_BD float32 [B, D]. `threads` are those of this call, whatever torch has.
        """
        total = self.faiss_index.ntotal
        k = min(k, total)
        padded_BD = _padded(query_BD, self.faiss_index.d)
        again = self.vectors if self.kind in ROUNDED else None
        fetched = k if again is None else min(total, OVERFETCH * k)
        with _threads(threads):
            if self.kind in LISTED:
                found = _search_lists(self.faiss_index, padded_BD, fetched, self.nprobe)
            elif self.kind == "hnsw":
                found = _search_graph(self.faiss_index, padded_BD, fetched)
            else:
                found = self.faiss_index.search(padded_BD, fetched)
        scores_BK, position_BK = found
        if again is not None:
            scores_BK, position_BK = _scored_again(again, query_BD, position_BK, k)
        scores_BK[position_BK < 0] = -np.inf
        return position_BK + 1, scores_BK


def build_index(
    item_vectors: np.ndarray, kind: str, *, queries_QD: np.ndarray | None = None
) -> Index:
    """An index over item_vectors float32 [V, D], row i-1 for item i, by inner product.

    The same vectors and queries give the same index. `queries_QD` float32 [Q, D] decide how many
    lists ivf, ivfpq and sq read; without them items themselves are asked for. The index keeps
    `item_vectors` to score with where its own are rounded. InputError for an unknown kind, for no
    items, and for vectors that are not finite.
    """
    kind = known_kind(kind)
    vectors = np.ascontiguousarray(item_vectors, dtype=np.float32)
    if not len(vectors):
        raise InputError("there are no items to build an index over")
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise InputError(
            f"the vector of item {bad[0] + 1} holds NaN or infinity ({len(bad):,} such items):"
            " nothing can be ranked by it; train the model again, with a smaller learning rate"
        )
    if kind == "hnsw":
        return Index("hnsw", _graph(vectors))
    if kind == "flat":
        flat = _faiss().IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        return Index("flat", flat)
    listed = _lists(vectors, kind)
    index = Index(kind, listed, listed.nlist, vectors if kind in ROUNDED else None)
    if queries_QD is None:
        queries_QD = vectors[np.random.default_rng(0).integers(len(vectors), size=TUNING_QUERIES)]
    return replace(index, nprobe=_probes(index, queries_QD[:TUNING_QUERIES], vectors))


def known_kind(kind: str, others: tuple[str, ...] = ()) -> IndexKind:
    """`kind` itself; InputError where it is none. `others` are named beside the kinds."""
    for known in KINDS:
        if kind == known:
            return known
    names = (*others, *KINDS)
    raise InputError(
        f"unknown index type {kind!r}{nearest(kind, names)} (types: {', '.join(names)})"
    )


def write_index(path: Path, index: Index) -> None:
    """Write the FAISS part of an index whole or not at all."""
    with written_whole(path) as aside:
        # Through Python's own write: faiss would not notice a disk that is full at the last block.
        aside.write_bytes(_faiss().serialize_index(index.faiss_index))


def map_index(path: Path, kind: IndexKind, items: int, dim: int) -> Any:
    """The FAISS index of a file, memory-mapped: pages are read as searches come to them.

    ValueError if it is no index of this kind over [items, dim] vectors.
    """
    faiss = _faiss()
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise ValueError(f"no index can be read from {path}: {error}") from None
    found = (type(index).__name__, index.ntotal, index.d)
    if found != (CLASSES[kind], items, dim + _extra_dims(kind, dim)):
        raise ValueError(f"{path} holds an {found[0]} of {found[1]:,} items and {found[2]} axes")
    return index


def placed(index: Index, device: torch.device | str) -> Index:
    """The index in the memory of a CUDA device, where the FAISS that is installed can search there.

    A graph stays where it is: FAISS walks HNSW on CPUs alone. InputError where the device does not
    take the index, as codes of some lengths.
    """
    faiss, where = _faiss(), torch.device(device)
    if where.type != "cuda" or index.kind == "hnsw" or not hasattr(faiss, "StandardGpuResources"):
        return index
    resources = faiss.StandardGpuResources()
    try:
        moved = faiss.index_cpu_to_gpu(resources, where.index or 0, index.faiss_index)
    except RuntimeError as error:
        raise InputError(
            f"FAISS cannot search this {index.kind} index on {where}: {error}; build another type,"
            " or load the run with index='exact'"
        ) from None
    return replace(index, faiss_index=moved)


def exact_items(vectors: np.ndarray, queries_QD: np.ndarray, k: int) -> np.ndarray:
    """[Q, k] int64 items of the largest inner products, best first, of vectors float32 [V, D]."""
    vectors_VD, blocks = torch.from_numpy(vectors), torch.from_numpy(queries_QD).split(16)
    return torch.cat([torch.topk(block @ vectors_VD.T, k).indices + 1 for block in blocks]).numpy()


def recall(found_QK: np.ndarray, exact_QK: np.ndarray) -> float:
    """The share of the exact items that was found."""
    hits = [len(set(a) & set(b)) for a, b in zip(found_QK.tolist(), exact_QK.tolist(), strict=True)]
    return float(np.mean(hits)) / exact_QK.shape[1]


def _graph(vectors: np.ndarray) -> Any:
    """HNSW walks a graph of near neighbours, which maximum inner product is not. One more
    coordinate, sqrt(R^2 - |v|^2), makes items equally long (Bachrach et al. 2014): the graph then
    has neighbours by angle, and with 0 in that place a query's products stay what they were.

    R is the norm of an item that a quarter of the items are longer than; these stay as they are.
    With the longest norm for R, a few long items push all others together at one pole, and the walk
    ends at any of them; without the coordinate, no link leads to the short items.
    """
    faiss = _faiss()
    norm = (vectors.astype(np.float64) ** 2).sum(axis=1)
    equal = np.quantile(norm, HNSW_SHORTER)
    extra = np.sqrt(np.maximum(equal - norm, 0)).astype(np.float32)[:, None]
    index = faiss.IndexHNSWFlat(vectors.shape[1] + 1, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_BUILD
    with _threads(1):  # threads would link items in whatever order they come to them
        index.add(np.concatenate([vectors, extra], axis=1))
    return index


def _lists(vectors: np.ndarray, kind: IndexKind) -> Any:
    """Items in the lists of their nearest centres, of k-means by distance; a query reads those
    lists whose centres have the largest products with it, the mean product of what is in them."""
    faiss = _faiss()
    number = max(1, min(round(4 * math.sqrt(len(vectors))), len(vectors) // POINTS_PER_LIST))
    padded = _padded(vectors, vectors.shape[1] + _extra_dims(kind, vectors.shape[1]))
    width, product = padded.shape[1], faiss.METRIC_INNER_PRODUCT
    nearest_centre = faiss.IndexFlatL2(width)
    index: Any
    if kind == "ivf":
        index = faiss.IndexIVFFlat(nearest_centre, width, number, product)
    elif kind == "sq":
        rounding = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(nearest_centre, width, number, rounding, product)
    else:
        index = faiss.IndexIVFPQ(nearest_centre, width, number, width // 2, 8, product)
        index.use_precomputed_table = -1  # for distances only: not read by products
        _settle(index.pq.cp, most_points=CODES)
    _settle(index.cp, most_points=64)
    index.train(np.resize(padded, (CODES, width)) if len(padded) < CODES else padded)
    index.add(padded)
    largest_product = faiss.IndexFlatIP(width)
    largest_product.add(nearest_centre.reconstruct_n(0, number))
    largest_product.this.disown()
    index.quantizer, index.own_fields = largest_product, True
    return index


def _settle(clustering: Any, most_points: int) -> None:
    clustering.niter = 10
    clustering.spherical = False
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = most_points


def _probes(index: Index, queries_QD: np.ndarray, vectors: np.ndarray) -> int:
    """The fewest lists that reach the recall wanted; where all do not, those that reach as much."""
    k = min(10, len(vectors))
    exact_QK = exact_items(vectors, queries_QD, k)

    def reached(nprobe: int) -> float:
        return recall(replace(index, nprobe=nprobe).search(queries_QD, k)[0], exact_QK)

    least, enough, most = 0, 1, index.faiss_index.nlist
    wanted = RECALL_WANTED
    while (now := reached(enough)) < wanted and enough < most:
        least, enough = enough, min(2 * enough, most)
    if now < wanted:
        least, wanted = 0, now
    while enough - least > 1:
        middle = (least + enough) // 2
        least, enough = (least, middle) if reached(middle) >= wanted else (middle, enough)
    return enough


def _search_lists(
    index: Any, query_BD: np.ndarray, k: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lists are of uneven sizes: four times as many as k items fill on average are read at least,
    and twice as many again for rows that still come out short."""
    parameters = _faiss().SearchParametersIVF
    lists = min(index.nlist, max(nprobe, math.ceil(4 * k * index.nlist / index.ntotal)))
    scores_BK, position_BK = index.search(query_BD, k, params=parameters(nprobe=lists))
    while lists < index.nlist and (short := position_BK[:, -1] < 0).any():
        lists = min(index.nlist, 2 * lists)
        scores_BK[short], position_BK[short] = index.search(
            query_BD[short], k, params=parameters(nprobe=lists)
        )
    return scores_BK, position_BK


def _search_graph(index: Any, query_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    faiss = _faiss()
    items = faiss.downcast_index(index.storage)
    if k * SCAN_SHARE > index.ntotal:
        return items.search(query_BD, k)
    # A search that keeps fewer candidates than it returns would come back short.
    wide = faiss.SearchParametersHNSW(efSearch=max(HNSW_SEARCH, 2 * k))
    scores_BK, position_BK = index.search(query_BD, k, params=wide)
    if (short := position_BK[:, -1] < 0).any():
        scores_BK[short], position_BK[short] = items.search(query_BD[short], k)
    return scores_BK, position_BK


def _scored_again(
    vectors: np.ndarray, query_BD: np.ndarray, position_BC: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row's candidates by exact products; as ([B, k], [B, k]) like faiss."""
    scores_BC = np.empty(position_BC.shape, np.float32)
    for row, (query_D, position_C) in enumerate(zip(query_BD, position_BC, strict=True)):
        scores_BC[row] = vectors[position_C] @ query_D
    scores_BC[position_BC < 0] = -np.inf
    best_BK = np.argsort(-scores_BC, axis=1, kind="stable")[:, :k]
    return (
        np.take_along_axis(scores_BC, best_BK, axis=1),
        np.take_along_axis(position_BC, best_BK, axis=1),
    )


def _extra_dims(kind: IndexKind, dim: int) -> int:
    """Coordinates behind the vectors' own: HNSW's for the norm, and one that makes pairs."""
    return {"hnsw": 1, "ivfpq": dim % 2}.get(kind, 0)


def _padded(vectors: np.ndarray, width: int) -> np.ndarray:
    """float32 [N, width]: zeros behind the vectors' own coordinates."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    extra = width - vectors.shape[1]
    return np.pad(vectors, ((0, 0), (0, extra))) if extra else vectors


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """OpenMP counts threads for each calling thread, so one call's choice is no other's."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise InputError(
            "an index needs FAISS: pip install faiss-cpu; exact search works without"
        ) from None
    return faiss
