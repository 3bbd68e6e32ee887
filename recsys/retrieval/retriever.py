"""Retriever: a run folder as an object that takes raw item ids and gives raw item ids."""

import logging
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.data.vocab import Vocab
from recsys.errors import InputError
from recsys.models.base import Recommender
from recsys.retrieval import user_state
from recsys.retrieval.answers import Score, alike, answers, answers_to_histories, popular, wish_of
from recsys.retrieval.catalogue import Catalogue
from recsys.retrieval.histories import batch_of, encoded, times_of_known
from recsys.retrieval.lookup import Found
from recsys.retrieval.opening import Through, opened
from recsys.retrieval.reasons import Reason, reasons
from recsys.retrieval.reload import Mark, Reload, Watch, attempt, mark_of, self_test, settled
from recsys.retrieval.snapshot import Recommendations, Snapshot
from recsys.retrieval.user_state import UserState

log = logging.getLogger("recsys.retrieval")


class Retriever:
    """Serves one snapshot of model and catalogue at a time; threads may share a retriever.

    A request sees the snapshot of the moment it came in, whole, whatever is changed meanwhile.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        through: Through = "auto",
        mmap: bool = True,
        journal: str | Path | None = None,
    ):
        """`Retriever.load` is the way to one; `through` and `mmap` are for the runs of `reload`.

        Changes of the catalogue go to `journal`, and those that are in it are taken first.
        """
        self._through: Through = through
        self._mmap = mmap
        self._writing, self._reloading = threading.Lock(), threading.Lock()
        self.mark: Mark | None = None
        """Of the run folder as it was when it was read last, for who watches it."""
        self._catalogue = Catalogue(journal)
        self._now, dropped = self._catalogue.replayed(snapshot)
        if dropped:
            log.warning("%d new items of %s cannot be known to this model", dropped, journal)

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        mmap: bool = True,
        index: Through = "auto",
        journal: str | Path | None = None,
    ) -> "Retriever":
        """From a run folder alone. `threads` sets torch's threads for the whole process.

        `mmap` leaves weights and index in the file until they are read. `index="auto"` uses the
        run's FAISS index where there is one and the catalogue is large. `journal` names a file
        that keeps upserts, removals and availability across restarts; without it they are
        forgotten with the process.
        Raises InputError where the folder is not whole, damaged, or its index of other weights.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        folder = settled(Path(run))
        mark = mark_of(folder)
        snapshot = opened(folder, device, index, mmap)
        retriever = cls(snapshot, through=index, mmap=mmap, journal=journal)
        retriever.mark = mark
        return retriever

    @property
    def model(self) -> Recommender:
        """The model that answers."""
        return self._now.model

    @property
    def vocab(self) -> Vocab:
        """The raw ids of the catalogue."""
        return self._now.vocab

    @property
    def max_len(self) -> int:
        """Items of a history that the model sees, the last ones."""
        return self._now.model.max_len

    @property
    def fingerprint(self) -> str:
        """Of the weights that answer; states of users belong to them."""
        return self._now.fingerprint

    @property
    def items(self) -> pa.Table:
        """The catalogue: row i-1 is item i, removed ones included."""
        return self._now.catalogue

    def version(self) -> dict[str, Any]:
        """What serves: {model, fingerprint, items, available, catalogue, index}."""
        now = self._now
        return {
            "model": type(now.model).__name__,
            "fingerprint": now.fingerprint,
            "items": len(now.vocab),
            "available": int(now.available_V.sum()),
            "catalogue": now.catalogue_version,
            "index": now.index_version,
        }

    def recommend(
        self,
        history: Sequence[Any],
        k: int = 10,
        *,
        times: Sequence[int] | None = None,
        exclude: Collection[Any] = (),
        exclude_seen: bool = True,
        allow: Collection[Any] | None = None,
        filters: str | None = None,
        diversity: float = 0.0,
        score: Score = "product",
    ) -> Recommendations:
        """The k best items after a history of raw ids, oldest first.

        `times` are those of the history, in the unit of the training data; models that see time
        (hstu_rec, lssl_rec) were trained with them where the log has them. Unknown ids of the
        history are skipped and reported, those of `exclude` and `allow` do not matter. A history
        without a known item is answered by popularity, and marked so.

        Only items of `allow`, and those for which `filters` holds (an expression over the
        catalogue's columns, as in `category = 'lipstick' and price < 20`), come back.
        `diversity` in [0, 1] trades relevance for being unlike what is already in the list.
        `score="probability"` gives the softmax over all available items in the place of inner
        products. Where fewer than k items come back, `short` says why.
        """
        (found,) = self.recommend_batch(
            [history],
            k,
            times=None if times is None else [times],
            exclude=exclude,
            exclude_seen=exclude_seen,
            allow=allow,
            filters=filters,
            diversity=diversity,
            score=score,
        )
        return found

    def recommend_batch(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        *,
        times: Sequence[Sequence[int]] | None = None,
        exclude: Collection[Any] = (),
        exclude_seen: bool = True,
        allow: Collection[Any] | None = None,
        filters: str | None = None,
        diversity: float = 0.0,
        score: Score = "product",
    ) -> list[Recommendations]:
        """`recommend` for many histories at once, all under the same conditions."""
        now = self._now
        wish = wish_of(now, k, exclude, exclude_seen, allow, filters, diversity, score)
        rows = [encoded(now.vocab, "a history", history, Sequence) for history in histories]
        known = [items for items, _ in rows if items]
        missed = [unknown for items, unknown in rows if items]
        moments = None if times is None else times_of_known(now.vocab, histories, times)
        places = iter(answers_to_histories(now, known, moments, missed, wish))
        return [next(places) if items else popular(now, unknown, wish) for items, unknown in rows]

    def recommend_items(
        self, batch: Batch, k: int, *, seen: tuple[Tensor, Tensor] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """([B, k] int64 item numbers, best first, 0 where there are no more; [B, k] float32
        scores).

        `seen` are (row, item) pairs that must not come back. The batch is scored in one block.
        """
        now = self._now
        return now.search(batch, k, seen, now.allowed(None, None))

    def encode_user(
        self, history: Sequence[Any], *, times: Sequence[int] | None = None
    ) -> np.ndarray:
        """float32 [D] the query behind a history. InputError where it holds no known item."""
        now = self._now
        items, _ = encoded(now.vocab, "a history", history, Sequence)
        if not items:
            raise InputError(f"no item of the history is known: {history!r}")
        moments = None if times is None else times_of_known(now.vocab, [history], [times])
        return now.query(batch_of([items], moments, now.model.max_len))[0].cpu().numpy()

    def search(
        self,
        vectors: np.ndarray,
        k: int = 10,
        *,
        exclude: Collection[Any] = (),
        allow: Collection[Any] | None = None,
        filters: str | None = None,
        diversity: float = 0.0,
        score: Score = "product",
    ) -> list[Recommendations]:
        """The k best items for each query of `encode_user`, float32 [B, D]."""
        now = self._now
        dim = now.vectors_VD.shape[1]
        query_BD = np.asarray(vectors, dtype=np.float32)
        if query_BD.ndim != 2 or query_BD.shape[1] != dim or not np.isfinite(query_BD).all():
            raise InputError(f"vectors must be numbers of shape [B, {dim}], got {query_BD.shape}")
        wish = wish_of(now, k, exclude, False, allow, filters, diversity, score)
        nothing: list[list[Any]] = [[] for _ in query_BD]
        placed = torch.from_numpy(query_BD).to(now.device)
        return answers(now, placed, nothing, nothing, wish)

    def similar_items(
        self,
        item: Any,
        k: int = 10,
        *,
        exclude: Collection[Any] = (),
        allow: Collection[Any] | None = None,
        filters: str | None = None,
    ) -> Recommendations:
        """The k items with the most similar vectors; scores are cosines."""
        now = self._now
        known, _ = encoded(now.vocab, "similar_items", [item], Sequence)
        if not known:
            raise InputError(f"item {item!r} is not in the catalogue")
        wish = wish_of(now, k, exclude, True, allow, filters, 0.0, "product")
        return alike(now, known[0], wish)

    def reasons(
        self, history: Sequence[Any], items: Sequence[Any], *, times: Sequence[int] | None = None
    ) -> list[Reason | None]:
        """Why each of `items` (raw ids) is recommended after a history: the one event without which
        its score falls most, the score being what `recommend` gives it by exact search.

        The latest 50 events that the model sees are tried, in one batch. None where no event's
        absence lowers the score, and where the history holds no known item. InputError for an
        unknown item in `items`.
        """
        return reasons(self._now, history, items, times)

    def find_items(self, search: str = "", limit: int = 20, offset: int = 0) -> Found:
        """Items whose title or id holds every word of `search` in any case, as plain text: the
        `limit` behind the first `offset`, most frequent in training first.

        Removed items are not found; unavailable ones are, and say so.
        """
        now = self._now
        return now.lookup.found(search, limit, offset, now.removed_V, now.available_V)

    def titles(self, raw_ids: Sequence[Any]) -> list[str | None]:
        """Titles of raw ids; None where there is none."""
        now, titles = self._now, []
        for raw in raw_ids:
            items, _ = now.vocab.encode([raw])
            titles.append(now.titles[items[0] - 1] if items else None)
        return titles

    def init_state(
        self, history: Sequence[Any] = (), *, times: Sequence[int] | None = None
    ) -> UserState:
        """The state of a user behind a history of raw ids, to go on from event by event.

        InputError for models that do not take events one by one (bert4rec, the baselines).
        """
        now = self._now
        encoded(now.vocab, "a history", history, Sequence)
        if times is not None and len(times) != len(history):
            raise InputError("times must name one time for each item of a history")
        state = user_state.fresh(now)
        for place, event in enumerate(history):
            moment = None if times is None else int(times[place])
            state = user_state.after(now, state, event, moment)
        return state

    def update(self, state: UserState, event: Any, *, time: int | None = None) -> UserState:
        """The state behind one more event, a raw item id; `state` stays as it was.

        The work does not grow with the history where the model is recurrent. An unknown item
        changes nothing but `state.unknown`. InputError where the state is another model's.
        """
        return user_state.after(self._now, state, event, time)

    def recommend_from_state(
        self,
        state: UserState,
        k: int = 10,
        *,
        exclude: Collection[Any] = (),
        exclude_seen: bool = True,
        allow: Collection[Any] | None = None,
        filters: str | None = None,
        diversity: float = 0.0,
        score: Score = "product",
    ) -> Recommendations:
        """`recommend` for a state; by popularity before the first known event."""
        now = self._now
        user_state.check_owner(now, state)
        wish = wish_of(now, k, exclude, exclude_seen, allow, filters, diversity, score)
        if state.events == 0:
            return popular(now, [], wish)
        return answers(now, state.query_BD, [state.seen], [[]], wish)[0]

    def state_from_bytes(self, data: bytes) -> UserState:
        """The state that `UserState.to_bytes` was called on.

        InputError where the bytes are damaged, or the state of another model.
        """
        return user_state.from_bytes(self._now, data)

    def upsert_items(self, items: Any) -> int:
        """Serve new items by their text, without training; how many of them were new.

        `items`: a pandas DataFrame or an Arrow table with a column `item` of raw ids and the
        columns of text that the training data had, as in title, brand, categories. A known item
        takes the new texts, and comes back if it was removed. Requests that have begun end with
        the catalogue they began with. An index stays as it is: new items are scored beside it
        until `compact`. InputError for new items where the model does not know items by their text.
        """
        with self._writing:
            before = len(self.vocab)
            self._now = self._catalogue.upsert(self._now, items)
            return len(self.vocab) - before

    def remove_items(self, raw_ids: Collection[Any]) -> int:
        """Recommend these items no more, until they are upserted again; how many were known.

        They still count in histories.
        """
        with self._writing:
            self._now, known = self._catalogue.remove(self._now, raw_ids)
            return known

    def set_availability(self, raw_ids: Collection[Any], available: bool) -> int:
        """Recommend these items, or not for now; how many were known."""
        with self._writing:
            self._now, known = self._catalogue.set_available(self._now, raw_ids, available)
            return known

    def compact(self) -> None:
        """Write the journal anew in its shortest form, and build the index of all items anew where
        one is used."""
        with self._writing:
            self._now = self._catalogue.compacted(self._now)

    def reload(self, run: str | Path) -> Reload:
        """Load another run beside this one, try it, and serve it from then on.

        A run that is not whole, damaged or answers with nonsense is refused, which the result
        says; the old one serves on. Changes of the catalogue are taken over. States of users belong
        to their model: they are refused by another, and begin anew from the history.
        """

        def take_over() -> int:
            with self._reloading:  # or the run that was read last might not be the last to serve
                folder = settled(Path(run))
                mark = mark_of(folder)
                new = opened(folder, self._now.device, self._through, self._mmap)
                with self._writing:
                    new, dropped = self._catalogue.replayed(new)
                    self_test(new)
                    self._now, self.mark = new, mark
                return dropped

        return attempt(Path(run), lambda: self._now.model_version, take_over)

    def watch(self, place: str | Path, every_s: float = 30.0) -> Watch:
        """Look at a place (a run folder, or a link to one) every so often and `reload` a run that
        is or appears there and is not the one that was read last. Call `stop()` of the result to
        end it."""
        return Watch(Path(place), every_s, self.reload, self.mark)

    def close(self) -> None:
        """Let another process open the journal."""
        self._catalogue.close()
