"""A retriever that lives on: users event by event, a catalogue that changes, runs that follow."""

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from shops import NEW, SMALL, shop_folder

from recsys.errors import InputError
from recsys.retrieval import Retriever, user_state
from recsys.retrieval.index import build_run_index
from recsys.retrieval.lookup import FoundItem
from recsys.retrieval.reload import Watch
from recsys.retrieval.stores import MemoryStore, changed
from recsys.retrieval.user_state import SEEN
from recsys.run import train

CREAMS = ["cream-1", "cream-2"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    data = shop_folder(folder)
    short = {**SMALL, "trainer.epochs": 1}
    train(data, "sasrec", folder / "text", settings={**short, "model.item_encoder": "text"})
    train(data, "sasrec", folder / "ids", settings=short)
    train(data, "gru4rec", folder / "gru", settings={**short, "model.max_len": 6})
    train(data, "bert4rec", folder / "bert", settings={"model.dim": 8, "trainer.epochs": 1})
    return folder


def every(retriever: Retriever) -> list[str]:
    return retriever.recommend(CREAMS, k=100, exclude_seen=False).items


@pytest.mark.parametrize("name", ["gru", "ids"])
def test_events_one_by_one_give_what_the_history_gives(shop: Path, name: str):
    retriever = Retriever.load(shop / name)
    state = retriever.init_state()
    assert retriever.recommend_from_state(state).fallback == "popularity"
    history: list[str] = []
    for event in ("cream-1", "hose-2", "never heard of", "cream-1", "lamp-0"):
        state = retriever.update(state, event)
        history.append(event)
        found = retriever.recommend_from_state(state, k=8)
        wanted = retriever.recommend(history, k=8)
        assert found.items == wanted.items
        assert found.scores == pytest.approx(wanted.scores, abs=1e-4)
    assert (state.events, state.unknown) == (4, 1)
    again = retriever.init_state(history)
    assert retriever.recommend_from_state(again, k=8).items == found.items


def test_an_update_leaves_the_state_before_it_alone(shop: Path):
    retriever = Retriever.load(shop / "gru")
    before = retriever.init_state(CREAMS)
    kept = before.to_bytes()
    retriever.update(before, "lamp-0")
    assert before.to_bytes() == kept


def test_a_state_of_a_recurrent_model_has_one_size_and_comes_back_from_its_bytes(shop: Path):
    retriever = Retriever.load(shop / "gru")
    sizes = set()
    state = retriever.init_state()
    for step in range(40):
        state = retriever.update(state, f"cream-{step % 6}")
        sizes.add(len(state.to_bytes()))
    assert len(sizes) == 1
    back = retriever.state_from_bytes(state.to_bytes())
    assert retriever.recommend_from_state(back) == retriever.recommend_from_state(state)
    assert back.seen == state.seen
    assert len(state.seen) == 6 <= SEEN


def test_a_state_of_another_model_is_refused(shop: Path):
    gru, ids = Retriever.load(shop / "gru"), Retriever.load(shop / "ids")
    state = gru.init_state(CREAMS)
    for call in (
        lambda: ids.update(state, "cream-3"),
        lambda: ids.recommend_from_state(state),
        lambda: ids.state_from_bytes(state.to_bytes()),
    ):
        with pytest.raises(InputError, match="belongs to another model"):
            call()
    with pytest.raises(InputError, match="BERT4Rec does not take events one by one"):
        Retriever.load(shop / "bert").init_state()


def test_workers_that_share_a_store_lose_no_event(shop: Path):
    retriever, store = Retriever.load(shop / "gru"), MemoryStore()
    mark = retriever.version()["fingerprint"]

    def one_more(data: bytes | None) -> bytes:
        state = retriever.state_from_bytes(data) if data else retriever.init_state()
        return retriever.update(state, "cream-1").to_bytes()

    def worker() -> None:
        for _ in range(10):
            changed(store, "someone", mark, one_more, tries=1000)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = store.get("someone", mark)
    assert stored is not None
    assert retriever.state_from_bytes(stored.data).events == 40


def test_what_is_removed_does_not_come_back_until_it_is_upserted(shop: Path):
    retriever = Retriever.load(shop / "text")
    before = every(retriever)
    assert retriever.remove_items(["cream-3", "unheard of"]) == 1
    assert every(retriever) == [name for name in before if name != "cream-3"]
    assert retriever.recommend(["cream-3"]).fallback is None, "it still counts in a history"
    assert "cream-3" not in retriever.recommend([], k=100).items
    assert "cream-3" not in retriever.similar_items("cream-1", k=100).items
    state = retriever.init_state(CREAMS)
    assert "cream-3" not in retriever.recommend_from_state(state, k=100).items
    retriever.set_availability(["cream-3"], True)
    assert "cream-3" not in every(retriever)
    retriever.upsert_items(pd.DataFrame({"item": ["cream-3"]}))
    assert every(retriever) == before


def test_new_items_are_found_by_their_words_behind_those_of_training(shop: Path):
    retriever = Retriever.load(shop / "text")
    before = retriever.find_items("CREAM shiny")
    assert [row.item for row in before.items] == [f"cream-{n}" for n in range(6)]
    retriever.upsert_items(NEW)
    after = retriever.find_items("CREAM shiny")
    assert after.items == [*before.items, FoundItem("cream-new", "shiny cream", True, 0)]
    assert after.total == 7


def test_what_is_out_of_stock_comes_back_when_it_is_in_again(shop: Path):
    retriever = Retriever.load(shop / "ids")
    before = every(retriever)
    assert retriever.set_availability(["cream-3", "hose-1"], False) == 2
    assert every(retriever) == [name for name in before if name not in ("cream-3", "hose-1")]
    assert retriever.version()["available"] == len(before) - 2
    retriever.set_availability(["cream-3", "hose-1"], True)
    assert every(retriever) == before


def test_a_journal_brings_every_change_back(shop: Path, tmp_path: Path):
    journal = tmp_path / "live" / "journal"
    first = Retriever.load(shop / "text", journal=journal)
    first.upsert_items(NEW)
    first.upsert_items(pd.DataFrame({"item": ["lamp-0"], "title": ["shiny cream"]}))
    first.remove_items(["hose-1"])
    first.set_availability(["soap-1", "cream-new"], False)
    wanted, titles = first.recommend(CREAMS, k=100), first.titles(["lamp-0", "hose-new"])
    for _ in range(2):
        first.close()
        first = Retriever.load(shop / "text", journal=journal)
        found = first.recommend(CREAMS, k=100)
        assert found.items == wanted.items
        assert found.scores == pytest.approx(wanted.scores, abs=1e-5)
        assert first.titles(["lamp-0", "hose-new"]) == titles
        first.compact()
    first.close()


def test_changes_of_any_types_that_were_taken_are_taken_again_and_number_items_alike(
    shop: Path, tmp_path: Path
):
    journal = tmp_path / "journal"
    retriever = Retriever.load(shop / "text", journal=journal)
    for row in (
        {"item": "a", "title": "shiny soap", "size": 5},
        {"item": "b", "title": "shiny hose", "size": "large", "price": 3},
        {"item": "c", "title": 1984, "price": "2.5"},
        {"item": "lamp-0", "price": 9.5},
        {"item": "a", "title": "shiny cream", "size": ["small", "large"]},
        {"item": "d", "title": "shiny lamp", "size": None},
    ):
        retriever.upsert_items(pa.Table.from_pylist([row]))
    wanted, found = retriever.items, retriever.recommend(CREAMS, k=100)
    state = retriever.init_state(["b", "a"]).to_bytes()
    assert retriever.reload(shop / "text").took_over
    for _ in range(3):
        assert retriever.items.equals(wanted)
        again = retriever.recommend(CREAMS, k=100)
        assert again.items == found.items
        assert again.scores == pytest.approx(found.scores, abs=1e-5)
        seen = retriever.state_from_bytes(state).seen
        assert [wanted["item"][number - 1].as_py() for number in seen] == ["b", "a"]
        retriever.compact()
        retriever.close()
        retriever = Retriever.load(shop / "text", journal=journal)
    retriever.close()


def test_a_state_made_beside_more_new_items_is_refused(shop: Path):
    retriever = Retriever.load(shop / "text")
    retriever.upsert_items(NEW)
    state = retriever.init_state(["hose-new"]).to_bytes()
    with pytest.raises(InputError, match="not among the 24 of the catalogue"):
        Retriever.load(shop / "text").state_from_bytes(state)


def test_an_item_seen_again_is_the_latest_seen(shop: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(user_state, "SEEN", 3)
    retriever = Retriever.load(shop / "gru")
    state = retriever.init_state(["cream-0", "cream-1", "cream-2", "cream-0", "hose-1"])
    assert retriever.vocab.decode(state.seen) == ["cream-2", "cream-0", "hose-1"]
    assert retriever.vocab.decode(retriever.init_state(["hose-1", "hose-1"]).seen) == ["hose-1"]


def test_a_run_that_took_over_without_the_new_items_starts_again(
    shop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    journal = tmp_path / "journal"
    retriever = Retriever.load(shop / "text", journal=journal)
    retriever.upsert_items(NEW)
    retriever.remove_items(["lamp-1"])
    assert retriever.reload(shop / "ids").dropped == 2
    wanted = every(retriever)
    retriever.close()
    again = Retriever.load(shop / "ids", journal=journal)
    assert every(again) == wanted
    assert "2 new items" in caplog.text
    again.close()


def test_a_change_that_no_journal_can_hold_is_refused(shop: Path, tmp_path: Path):
    retriever = Retriever.load(shop / "text", journal=tmp_path / "journal")
    before = (tmp_path / "journal").read_bytes()
    for price in (float("nan"), float("inf")):
        table = pa.table({"item": ["cream-0"], "price": [price]})
        with pytest.raises(InputError, match="cannot be written to the journal"):
            retriever.upsert_items(table)
    assert (tmp_path / "journal").read_bytes() == before
    retriever.close()


def test_new_items_are_found_beside_an_index_and_in_it_after_compacting(shop: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(shop / "text", run)
    build_run_index(run, "hnsw")
    exact, through = Retriever.load(run), Retriever.load(run, index="index")
    for retriever in (exact, through):
        retriever.upsert_items(NEW)
        retriever.upsert_items(
            pd.DataFrame({"item": ["lamp-0"], "title": ["cream number2 number5"]})
        )
        retriever.remove_items(["cream-4"])
    wanted = exact.recommend(CREAMS, k=12)
    assert "cream-new" in wanted.items
    assert "lamp-0" in wanted.items
    for version in (through.version()["index"], "compacted"):
        found = through.recommend(CREAMS, k=12)
        assert found.items == wanted.items
        assert found.scores == pytest.approx(wanted.scores, abs=1e-4)
        assert found.index_version == version
        through.compact()
    assert exact.recommend(CREAMS).index_version is None


def test_requests_that_run_beside_changes_always_see_a_whole_catalogue(shop: Path):
    retriever = Retriever.load(shop / "text")
    size, wrong, stop = len(retriever.vocab), [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            found = retriever.recommend(CREAMS, k=100, exclude_seen=False)
            if len(found.items) not in (size, size - 1, size + 1) or None in found.titles:
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        retriever.upsert_items(NEW[:1])
        retriever.remove_items(["cream-new"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_reload_takes_over_a_sound_run_and_the_changes_so_far(shop: Path):
    retriever = Retriever.load(shop / "text")
    retriever.upsert_items(NEW)
    retriever.remove_items(["hose-1"])
    report = retriever.reload(shop / "ids")
    assert (report.took_over, report.reason, report.dropped) == (True, None, 2)
    assert report.model_version == Retriever.load(shop / "ids").version()["fingerprint"][:12]
    plain = every(Retriever.load(shop / "ids"))
    assert every(retriever) == [name for name in plain if name != "hose-1"]
    back = retriever.reload(shop / "text")
    assert back.took_over
    assert back.dropped == 0
    assert "cream-new" in every(retriever), "what one model could not know the next one may"


def damaged(run: Path, how: str) -> None:
    weights = run / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif how == "gone":
        (run / "items.parquet").unlink()
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.fill_(np.nan)
        save_file(tensors, weights)


@pytest.mark.parametrize("how", ["cut", "gone", "nan"])
def test_a_bad_run_is_refused_and_the_old_one_serves_on(shop: Path, tmp_path: Path, how: str):
    bad = tmp_path / "bad"
    shutil.copytree(shop / "ids", bad)
    damaged(bad, how)
    retriever = Retriever.load(shop / "gru")
    before = retriever.recommend(CREAMS)
    report = retriever.reload(bad)
    assert not report.took_over
    assert report.reason
    assert report.model_version == before.model_version
    assert retriever.recommend(CREAMS) == before


def test_a_watch_follows_a_link_from_run_to_run(shop: Path, tmp_path: Path):
    link = tmp_path / "current"
    link.symlink_to(shop / "gru")
    retriever = Retriever.load(link)
    watch = retriever.watch(link, every_s=0.02)

    def point_at(run: Path) -> None:
        aside = tmp_path / "aside"
        aside.symlink_to(run)
        seen = watch.last
        os.replace(aside, link)
        limit = time.monotonic() + 20
        while watch.last is seen and time.monotonic() < limit:
            time.sleep(0.01)

    point_at(shop / "ids")
    assert watch.last is not None
    assert watch.last.took_over
    serving = retriever.version()["fingerprint"]
    bad = tmp_path / "bad"
    shutil.copytree(shop / "gru", bad)
    damaged(bad, "cut")
    point_at(bad)
    assert not watch.last.took_over
    assert retriever.version()["fingerprint"] == serving
    watch.stop()


def taken_over(watch: Watch) -> bool:
    limit = time.monotonic() + 20
    while not (watch.last and watch.last.took_over) and time.monotonic() < limit:
        time.sleep(0.01)
    watch.stop()
    return watch.last is not None and watch.last.took_over


def test_a_run_that_came_before_the_watch_began_is_followed(shop: Path, tmp_path: Path):
    link = tmp_path / "current"
    link.symlink_to(shop / "gru")
    retriever = Retriever.load(link)
    link.unlink()
    link.symlink_to(shop / "ids")
    assert taken_over(retriever.watch(link, every_s=0.02))
    assert retriever.fingerprint == Retriever.load(shop / "ids").fingerprint


def test_a_run_that_was_refused_for_a_part_is_tried_again_when_the_part_is_there(
    shop: Path, tmp_path: Path
):
    place = tmp_path / "place"
    retriever = Retriever.load(shop / "gru")
    watch = retriever.watch(place, every_s=0.02)
    shutil.copytree(shop / "ids", place, ignore=shutil.ignore_patterns("items.parquet"))
    limit = time.monotonic() + 20
    while watch.last is None and time.monotonic() < limit:
        time.sleep(0.01)
    assert watch.last is not None
    assert "items.parquet" in str(watch.last.reason)
    shutil.copy(shop / "ids" / "items.parquet", place)
    assert taken_over(watch)


def test_a_model_over_gaps_is_indexed_and_taken_over(shop: Path, tmp_path: Path):
    days = [{"user": u, "item": (u + t) % 9, "time": 5 * t} for u in range(12) for t in range(5)]
    short = {"model.dim": 8, "model.time": "gaps", "trainer.epochs": 1}
    run = train(pd.DataFrame(days), "lssl_rec", tmp_path / "run", settings=short)
    build_run_index(run, "flat")
    retriever = Retriever.load(run, index="index")
    assert retriever.reload(run).took_over
    assert len(retriever.recommend([1, 2], times=[0, 5], k=3).items) == 3
