"""Changes of a live catalogue: each gives another snapshot, once the journal has it."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recsys.retrieval.faiss_index import placed
from recsys.retrieval.histories import encoded
from recsys.retrieval.index import build_index
from recsys.retrieval.journal import Changes, Journal, as_read
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.upsert import given_rows, said, told, upserted

COMPACTED = "compacted"
"""Version of an index that was built in the process and lies in no file."""


class Catalogue:
    """The changes so far, in a journal or, without one, as long as the process lives.

    Its callers see to it that one change is made at a time.
    """

    def __init__(self, path: str | Path | None):
        self._journal = None if path is None else Journal(path)
        self._changes = Changes() if self._journal is None else self._journal.changes

    def upsert(self, now: Snapshot, items: Any) -> Snapshot:
        """New items, and new words for known ones."""
        change = {"upsert": told(given_rows(items, now.catalogue), now.catalogue).to_pylist()}
        if self._journal is not None:
            # As a journal gives it back: what cannot be taken from there is not taken at all.
            change = as_read(change)
        new = upserted(now, *said(change["upsert"], now.catalogue))
        self._keep(change)
        return new

    def remove(self, now: Snapshot, raw_ids: Collection[Any]) -> tuple[Snapshot, int]:
        """(the snapshot without these items, how many of them it knew)."""
        known, _ = encoded(now.vocab, "remove_items", raw_ids, Collection)
        if known:
            self._keep({"remove": now.vocab.decode(known)})
            now = now.without(np.array(known))
        return now, len(known)

    def set_available(
        self, now: Snapshot, raw_ids: Collection[Any], available: bool
    ) -> tuple[Snapshot, int]:
        """(the snapshot with these items in stock or out of it, how many of them it knew)."""
        known, _ = encoded(now.vocab, "set_availability", raw_ids, Collection)
        if known:
            word = "available" if available else "unavailable"
            self._keep({word: now.vocab.decode(known)})
            now = now.with_available(np.array(known), available)
        return now, len(known)

    def compacted(self, now: Snapshot) -> Snapshot:
        """The same catalogue; the journal in its shortest form, an index of all that is there."""
        if self._journal is not None:
            self._journal.compact()
        if now.index is None or not len(now.stale_N):
            return now
        vectors = now.vectors(np.arange(1, len(now.vocab) + 1))
        built = replace(build_index(vectors, now.index.kind), version=COMPACTED)
        return now.with_index(placed(built, now.device))

    def replayed(self, new: Snapshot) -> tuple[Snapshot, int]:
        """(a snapshot fresh from its run with all changes made, how many items it cannot know: new
        ones, where it knows items by learned vectors alone)."""
        rows = self._changes.rows_for(new.catalogue.column_names)
        if new.describe is None:
            rows = [row for row in rows if row["item"] in new.vocab]
        dropped = len(self._changes.rows) - len(rows)
        if rows:
            new = upserted(new, *said(rows, new.catalogue))
        if removed := new.vocab.encode(self._changes.removed)[0]:
            new = new.without(np.array(removed))
        if unavailable := new.vocab.encode(self._changes.unavailable)[0]:
            new = new.with_available(np.array(unavailable), False)
        return new, dropped

    def close(self) -> None:
        """Let another process open the journal."""
        if self._journal is not None:
            self._journal.close()

    def _keep(self, change: dict[str, Any]) -> None:
        if self._journal is None:
            self._changes.take(change)
        else:
            self._journal.append(change)
