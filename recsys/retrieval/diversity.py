"""Lists whose items are unlike each other: maximal marginal relevance."""

import numpy as np


def diversified(
    items_N: np.ndarray, scores_N: np.ndarray, vectors_ND: np.ndarray, k: int, weight: float
) -> np.ndarray:
    """int64 [<= k] places in `items_N`, in the order in which they are picked (Carbonell and
    Goldstein 1998).

    Each pick is the argmax of (1 - weight) relevance - weight similarity. Relevance is the score,
    scaled to [0, 1] over the candidates (1 where all scores are equal); similarity is the largest
    cosine to an item that was picked, 0 for a vector of length 0 and before the first pick. Among
    equals the better-scored is picked, then the first. weight 0 gives the order of the scores.
    """
    order_N = np.argsort(-scores_N, kind="stable")
    scores = scores_N[order_N].astype(np.float64)
    spread = scores[0] - scores[-1] if len(scores) else 0.0
    relevance_N = (scores - scores[-1]) / spread if spread > 0 else np.ones(len(scores))
    vectors = vectors_ND[order_N].astype(np.float64)
    length_N1 = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, length_N1, out=np.zeros_like(vectors), where=length_N1 > 0)
    nearest_N = np.zeros(len(items_N))
    value_N = (1 - weight) * relevance_N
    picked: list[int] = []
    for _ in range(min(k, len(items_N))):
        best = int(np.argmax(value_N - weight * nearest_N))
        similarity_N = vectors @ vectors[best]
        nearest_N = np.maximum(nearest_N, similarity_N) if picked else similarity_N
        value_N[best] = -np.inf
        picked.append(best)
    return order_N[picked]
