"""Runs that take each other's place while somebody reads or changes them."""

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from untrained import log, saved_run

from recsys.retrieval import Retriever, opening, retriever
from recsys.run import prepare


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link to the run `old`; `new` has its items in another order."""
    saved_run(tmp_path / "old", prepare(log(), tmp_path / "data"), tmp_path / "data")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    items = tmp_path / "new" / "items.parquet"
    table = pq.read_table(items)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), items)
    (tmp_path / "current").symlink_to(tmp_path / "old")
    return tmp_path / "current"


def point_at(link: Path, run: str) -> None:
    aside = link.with_name("aside")
    aside.symlink_to(link.with_name(run))
    os.replace(aside, link)


def ids(served: Retriever) -> list[Any]:
    return served.vocab.raw_ids.to_pylist()


def test_a_link_that_moves_while_a_run_is_read_mixes_no_two_runs(
    link: Path, monkeypatch: pytest.MonkeyPatch
):
    old = ids(Retriever.load(link))
    read = opening.load_model

    def then_moved(*arguments: Any, **options: Any) -> Any:
        model = read(*arguments, **options)
        point_at(link, "new")
        return model

    monkeypatch.setattr(opening, "load_model", then_moved)
    served = Retriever.load(link)
    assert ids(served) == old
    point_at(link, "old")
    assert served.reload(link).took_over
    assert ids(served) == old
    monkeypatch.undo()
    assert served.reload(link).took_over
    assert ids(served) == old[::-1] != old


def test_what_lies_in_the_place_last_serves_however_long_an_earlier_run_took(
    link: Path, monkeypatch: pytest.MonkeyPatch
):
    served = Retriever.load(link)
    old, opened = ids(served), retriever.opened
    reading, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        snapshot = opened(*arguments)
        reading.set()
        assert go_on.wait(20)
        return snapshot

    monkeypatch.setattr(retriever, "opened", slowly)
    first = threading.Thread(target=served.reload, args=(link,))
    first.start()
    assert reading.wait(20)
    monkeypatch.setattr(retriever, "opened", opened)
    point_at(link, "new")
    second = threading.Thread(target=served.reload, args=(link,))
    second.start()
    second.join(0.2)  # which ends in this time where it does not wait
    go_on.set()
    first.join()
    second.join()
    assert ids(served) == old[::-1]
