"""Indexes over a million vectors: building, recall, milliseconds of one query, size and cold start.

    python benchmarks/serving_index.py                    (1,000,000 items; hnsw ivf ivfpq sq)
    python benchmarks/serving_index.py 100000 flat ivfpq

Clusters of 500 items with the spread of their centres inside, lengths log-normal, 64 axes; queries
are items with noise. Searches take one thread and one query at a time; recall is that of the first
ten against exact search, on other queries than those an index is tuned on. Resident memory is what
a new process grows by while it answers all queries through the index alone; a cold start is a new
process from its first import to its first answer, checksums and exact vectors to score with
included.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import emit

from recsys.checkpoint import WEIGHTS, read_tensors, write_tensors
from recsys.retrieval.index import INDEX, QUERIES, build_index, load_index, measured, save_index

DIM = 64
CLUSTER = 500
STARTS = 5


def world(items: int) -> tuple[np.ndarray, np.ndarray]:
    """(vectors float32 [V, D], queries float32 [2Q, D])."""
    random = np.random.default_rng(0)

    def normal(*size: int) -> np.ndarray:
        return random.standard_normal(size, dtype=np.float32)

    centres = normal(max(1, items // CLUSTER), DIM)
    vectors = centres[random.integers(len(centres), size=items)] + normal(items, DIM)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors[random.integers(items, size=2 * QUERIES)]
    vectors *= np.exp(0.3 * normal(items, 1))
    return vectors, near + normal(len(near), DIM) * np.float32(0.7 / DIM**0.5)


def child(what: str, run: Path) -> float:
    """A figure that a new process prints: this file again, called with `what`."""
    words = [sys.executable, __file__, what, str(run)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def answer(run: Path) -> None:
    """What a service does first: load, and answer one query."""
    vectors = read_tensors(run / WEIGHTS)[0]["vectors"].numpy()
    load_index(run, vectors=vectors).search(np.load(run / "queries.npy")[:1], 10)


def resident(run: Path) -> float:
    """MB that this process grows by when an index answers all queries."""
    queries = np.load(run / "queries.npy")
    answer_once = build_index(queries, "flat")
    answer_once.search(queries, 10)  # what faiss itself takes is no part of an index
    before = resident_mb()
    index = load_index(run)
    for query in queries:
        index.search(query[None], 10)
    return resident_mb() - before


def resident_mb() -> float:
    """Memory of this process that lies in RAM, mapped files included."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024 / 1e6


def measure(kind: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """One line of results."""
    started = time.perf_counter()
    index = build_index(vectors, kind, queries_QD=queries[:QUERIES])
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as place:
        run = Path(place)
        write_tensors(run / WEIGHTS, {"vectors": torch.from_numpy(vectors)})
        np.save(run / "queries.npy", queries[QUERIES:])
        save_index(run, index, DIM)
        starts, loads = [], []
        for _ in range(STARTS):
            started = time.perf_counter()
            loads.append(child("cold", run))
            starts.append(time.perf_counter() - started)
        emit(
            f"index {kind} over {len(vectors):,} x {DIM}, top 10, one query on one thread",
            {
                "kind": kind,
                "items": len(vectors),
                "dim": DIM,
                "nprobe": index.nprobe,
                "build_seconds": round(seconds, 1),
                **measured(index, vectors, queries[QUERIES:]),
                "file_mb": round((run / INDEX).stat().st_size / 1e6, 1),
                "resident_mb": round(child("resident", run), 1),
                "cold_start_seconds": round(float(np.median(starts)), 3),
                "of_it_load_and_answer_seconds": round(float(np.median(loads)), 3),
            },
            "serving_index.jsonl",
        )


def main() -> None:
    """Measure the kinds named, or what a child is asked for."""
    words = sys.argv[1:]
    if words[:1] == ["cold"]:
        started = time.perf_counter()
        answer(Path(words[1]))
        print(time.perf_counter() - started)
    elif words[:1] == ["resident"]:
        print(resident(Path(words[1])))
    else:
        items = int(words.pop(0)) if words and words[0].isdigit() else 1_000_000
        vectors, queries = world(items)
        for kind in words or ("hnsw", "ivf", "ivfpq", "sq"):
            measure(kind, vectors, queries)


if __name__ == "__main__":
    main()
