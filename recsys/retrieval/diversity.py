"""Maximal marginal relevance (Carbonell & Goldstein, 1998): lists that do not repeat themselves."""

import numpy as np

from recsys.errors import InputError


def diversified(
    items_N: np.ndarray,
    scores_N: np.ndarray,
    vectors_ND: np.ndarray,
    k: int,
    weight: float,
) -> np.ndarray:
    """[min(k, N)] int64 positions among the candidates, in the order to show them.

    items_N int64: candidates, 0 where there is none; scores_N float, larger is better; vectors_ND
    float, the candidates' vectors. Each pick is the candidate of the largest

        (1 - weight) * relevance - weight * max cosine to those picked before.

    Relevance is the score scaled to [0, 1] over the candidates, 1 for all if all scores are equal.
    A vector of zeros has cosine 0 to every other. Of equals the better-scored is picked, then the
    earlier. weight in [0, 1]: 0 gives the order by score, 1 minds likeness alone once the best is
    picked. Places without a candidate (item 0) are never picked, so fewer than k may come back.

    Raises InputError where weight or k is out of range, or a candidate's score or vector is not
    finite.
    """
    if not 0 <= weight <= 1:
        raise InputError(f"the weight of diversity lies in [0, 1], got {weight}")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    (real,) = np.nonzero(items_N)
    if not (np.isfinite(scores_N[real]).all() and np.isfinite(vectors_ND[real]).all()):
        raise InputError("scores and vectors of candidates must be finite numbers")
    # Stable, and the best first, so that argmax settles ties as documented.
    order = real[np.argsort(-scores_N[real].astype(np.float64), kind="stable")]
    scores, units = scores_N[order].astype(np.float64), _units(vectors_ND[order])
    worth = (1 - weight) * _relevance(scores)
    likeness = np.full(len(order), -np.inf)
    picked: list[int] = []
    for _ in range(min(k, len(order))):
        best = int(np.argmax(worth - weight * likeness if picked else worth))
        picked.append(best)
        # Not `@`, which may give equal rows products that differ in the last bit: no ties then.
        np.maximum(likeness, np.einsum("nd,d->n", units, units[best]), out=likeness)
        worth[best] = -np.inf
    return order[picked]


def _relevance(scores_N: np.ndarray) -> np.ndarray:
    """Best-first scores scaled to [0, 1]."""
    if len(scores_N) == 0 or scores_N[0] == scores_N[-1]:
        return np.ones_like(scores_N)
    return (scores_N - scores_N[-1]) / (scores_N[0] - scores_N[-1])


def _units(vectors_ND: np.ndarray) -> np.ndarray:
    """Each vector at length 1, those of zeros as they are."""
    # Scaled first: squares of the very small and the very large would leave the range.
    largest = np.abs(vectors_ND).max(axis=1, keepdims=True, initial=0).astype(np.float64)
    scaled = vectors_ND / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(length > 0, length, 1)
