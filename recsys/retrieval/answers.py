"""From queries to what a caller gets: what may come back, how it is chosen and what it says."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.models.base import SequenceModel
from recsys.retrieval.diversity import diversified
from recsys.retrieval.histories import batch_of, encoded, pairs
from recsys.retrieval.snapshot import Recommendations, Snapshot

Score = Literal["product", "probability"]
SCORES = 2**24
"""Scores in memory at a time, 64 MB: a thousand histories over a million items would take 4 GB."""
FEWEST = 64
"""Histories scored at a time, at least: their scores are no larger than a catalogue's vectors."""
POOL = 10
"""Candidates for each of the k places where a list is to be diverse, and at least 100."""


@dataclass(frozen=True)
class Wish:
    """What is asked of one list, in item numbers of one snapshot."""

    k: int
    """Length of the list."""
    hidden: list[int]
    """Items that must not come back."""
    exclude_seen: bool
    """Whether items of the history must not come back either."""
    allowed_V: np.ndarray | None
    """bool [V+1] of what may come back; None where that is everything."""
    diversity: float
    """Weight of being unlike the others, in [0, 1]."""
    score: Score
    """What scores are."""

    @property
    def pool(self) -> int:
        """Candidates that the list is chosen from."""
        return self.k if self.diversity == 0 else max(100, POOL * self.k)


def wish_of(
    now: Snapshot,
    k: int,
    exclude: Collection[Any],
    exclude_seen: bool,
    allow: Collection[Any] | None,
    filters: str | None,
    diversity: float,
    score: Score,
) -> Wish:
    """The wish in the numbers of a snapshot. InputError where it makes no sense."""
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if not 0 <= diversity <= 1:
        raise InputError(f"diversity must lie in [0, 1], got {diversity}")
    if diversity and not isinstance(now.model, SequenceModel):
        raise InputError(f"diversity needs item vectors, which {type(now.model).__name__} has not")
    if score not in ("product", "probability"):
        raise InputError(f"score must be product or probability, got {score!r}")
    if score == "probability" and not isinstance(now.model, SequenceModel):
        raise InputError(f"{type(now.model).__name__} counts: its scores are no probabilities")
    hidden, _ = encoded(now.vocab, "exclude", exclude, Collection)
    named = None if allow is None else encoded(now.vocab, "allow", allow, Collection)[0]
    return Wish(k, hidden, exclude_seen, now.allowed(filters, named), float(diversity), score)


def answers_to_histories(
    now: Snapshot,
    histories: Sequence[list[int]],
    times: Sequence[list[int]] | None,
    unknown: Sequence[list[Any]],
    wish: Wish,
) -> list[Recommendations]:
    """A list for each history of item numbers, of which there are some, and times like them."""
    size = max(FEWEST, SCORES // (len(now.vocab) + 1))
    found = []
    for first in range(0, len(histories), size):
        part = slice(first, first + size)
        moments = None if times is None else list(times[part])
        batch = batch_of(list(histories[part]), moments, now.model.max_len)
        found += _answers_to_batch(now, batch, histories[part], unknown[part], wish)
    return found


def _answers_to_batch(
    now: Snapshot,
    batch: Batch,
    histories: Sequence[Sequence[int]],
    unknown: Sequence[list[Any]],
    wish: Wish,
) -> list[Recommendations]:
    if isinstance(now.model, SequenceModel):
        return answers(now, now.query(batch), histories, unknown, wish)
    seen = pairs(histories, wish.hidden, wish.exclude_seen)
    items_BK, scores_BK = now.search(batch, wish.k, seen, wish.allowed_V)
    return [_list(now, *row, wish) for row in zip(items_BK, scores_BK, unknown, strict=True)]


def answers(
    now: Snapshot,
    query_BD: Tensor,
    histories: Sequence[Sequence[int]],
    unknown: Sequence[list[Any]],
    wish: Wish,
) -> list[Recommendations]:
    """A list for each query float32 [B, D]; `histories` are items not to be seen again."""
    seen = pairs(histories, wish.hidden, wish.exclude_seen)
    items_BK, scores_BK = now.search_queries(query_BD, wish.pool, seen, wish.allowed_V)
    picked = [_picked(now, *row, wish) for row in zip(items_BK, scores_BK, strict=True)]
    if wish.score == "probability":
        scores_BK = now.probabilities(query_BD, scores_BK)
    index = now.index_version if now.is_indexed(wish.allowed_V) else None
    return [
        _list(now, items_K[places], scores_K[places], missed, wish, index=index)
        for items_K, scores_K, places, missed in zip(
            items_BK, scores_BK, picked, unknown, strict=True
        )
    ]


def alike(now: Snapshot, item: int, wish: Wish) -> Recommendations:
    """The items whose vectors are most similar to one item's."""
    seen = pairs([[item]], wish.hidden, True)
    return _list(now, *now.similar(item, wish.k, seen, wish.allowed_V), [], wish)


def popular(now: Snapshot, unknown: list[Any], wish: Wish) -> Recommendations:
    """The most frequent items of training, marked as such."""
    items_K = now.popular(wish.k, pairs([[]], wish.hidden, False), wish.allowed_V)
    shares = wish.score == "probability"
    scores_K = now.count_share(items_K) if shares else now.counts(items_K)
    return _list(now, items_K, scores_K, unknown, wish, fallback="popularity")


def _picked(now: Snapshot, items_K: np.ndarray, scores_K: np.ndarray, wish: Wish) -> np.ndarray:
    """Places of the chosen in a pool of candidates, best first."""
    if wish.diversity == 0:
        return np.arange(min(int(np.count_nonzero(items_K)), wish.k))
    return diversified(items_K, scores_K, now.vectors(items_K), wish.k, wish.diversity)


def _list(
    now: Snapshot,
    items_K: np.ndarray,
    scores_K: np.ndarray,
    unknown: list[Any],
    wish: Wish,
    *,
    fallback: str | None = None,
    index: str | None = None,
) -> Recommendations:
    """Item numbers and scores as raw ids with their titles, and what there is to say of them."""
    items = [item for item in items_K.tolist() if item > 0]
    short = None
    if len(items) < wish.k:
        passing = "passes filters, allow and availability, and was not seen or excluded"
        rest = "the catalogue holds no other that was not seen or excluded"
        why = f"no other item {passing}" if wish.allowed_V is not None else rest
        short = f"{len(items)} of {wish.k}: {why}"
    return Recommendations(
        now.vocab.decode(items),
        scores_K[: len(items)].tolist(),
        [now.titles[item - 1] for item in items],
        unknown,
        fallback,
        short,
        now.model_version,
        now.catalogue_version,
        index,
    )
