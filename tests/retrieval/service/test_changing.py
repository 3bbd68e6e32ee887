"""Events, the catalogue and the models, changed while the service serves."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pytest
import torch
from fastapi.testclient import TestClient

from recsys.checkpoint import WEIGHTS, read_tensors, write_tensors
from recsys.errors import InputError
from recsys.retrieval import Retriever
from recsys.retrieval.service.config import ServiceConfig
from recsys.retrieval.service.service import Service
from recsys.retrieval.stores import MemoryStore, Stored
from recsys.run import train

CREAMS = ["cream-1", "cream-2"]
NEW = [
    {"item": "cream-new", "title": "shiny cream"},
    {"item": "hose-new", "title": "shiny hose"},
]


def all_items(client: TestClient, **more: object) -> list[str]:
    body = {"history": CREAMS, "k": 100, "exclude_seen": False, **more}
    return [item["item"] for item in client.post("/recommend", json=body).json()["items"]]


def report(client: TestClient, user: str, *items: str, model: str = "gru") -> dict:
    body = {"user": user, "events": [{"item": item} for item in items], "model": model}
    answer = client.post("/events", json=body)
    assert answer.status_code == 200
    return answer.json()


def test_a_user_whose_events_were_reported_is_answered_as_the_history_is(client: TestClient):
    assert report(client, "ann", "lamp-1", "unheard of")["unknown"] == 1
    taken = report(client, "ann", "lamp-2")
    assert (taken["events"], taken["unknown"]) == (2, 1)
    by_user = client.post("/recommend", json={"user": "ann", "k": 5, "model": "gru"}).json()
    by_history = {"history": ["lamp-1", "lamp-2"], "k": 5, "model": "gru"}
    wanted = client.post("/recommend", json=by_history).json()
    assert [item["item"] for item in by_user["items"]] == [item["item"] for item in wanted["items"]]
    assert by_user["model_version"] == taken["model_version"]


def test_unknown_ids_of_events_are_counted_once_for_the_model_that_was_asked(
    client: TestClient, monkeypatch
):
    def counted() -> list[str]:
        lines = client.get("/metrics").text.splitlines()
        return [line for line in lines if line.startswith("recsys_unknown_ids_total{")]

    report(client, "ann", "lamp-1")
    assert counted() == []
    report(client, "ann", "unheard of", "lamp-1", "nor that")
    assert counted() == ['recsys_unknown_ids_total{model="gru"} 2.0']
    store, refused = client.app.state.service.store, []
    swap = store.swap

    def refuses_once(*given: Any) -> bool:
        if not refused:
            refused.append(given)
            return False
        return swap(*given)

    monkeypatch.setattr(store, "swap", refuses_once)  # as where another worker came between
    report(client, "ann", "unheard of")
    assert len(refused) == 1
    assert counted() == ['recsys_unknown_ids_total{model="gru"} 3.0']


def test_a_user_without_events_is_answered_by_popularity(client: TestClient):
    assert client.post("/recommend", json={"user": "new"}).json()["fallback"] == "popularity"


@pytest.mark.parametrize("user", ["bob", "a/b", "ü ?#%"])
def test_a_user_is_forgotten_in_every_model(client: TestClient, user: str):
    for model in ("gru", "text"):
        report(client, user, "lamp-1", model=model)
    assert client.delete(f"/users/{quote(user, safe='')}").json() == {"forgotten": True}
    for model in ("gru", "text"):
        body = client.post("/recommend", json={"user": user, "model": model}).json()
        assert body["fallback"] == "popularity"
        assert report(client, user, "lamp-1", model=model)["events"] == 1


def test_events_that_come_together_are_all_counted(client: TestClient):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: report(client, "eve", f"soap-{n % 6}"), range(40)))
    assert report(client, "eve", "soap-0")["events"] == 41


def test_items_come_and_go(client: TestClient):
    removed = client.post("/items/remove", json={"ids": ["lamp-0", "unheard of"]})
    assert removed.json() == {"models": {"text": {"known": 1}, "gru": {"known": 1}}}
    closed = client.post("/items/availability", json={"ids": ["lamp-1"], "available": False})
    assert closed.status_code == 200
    for model in ("text", "gru"):
        assert not {"lamp-0", "lamp-1"} & set(all_items(client, model=model))
    client.post("/items/availability", json={"ids": ["lamp-1"], "available": True})
    assert "lamp-1" in all_items(client)
    assert client.get("/version").json()["models"]["text"]["available"] == 23


def test_new_items_are_served_by_the_models_that_read_text(client: TestClient, opened, shop):
    alone = opened(shop / "text")
    answer = alone.post("/items", json={"items": NEW})
    assert answer.json() == {"models": {"text": {"new": 2}}}
    assert all_items(alone).index("cream-new") < all_items(alone).index("hose-new")
    both = client.post("/items", json={"items": NEW})
    assert both.status_code == 422
    assert both.json()["models"]["text"] == {"new": 2}
    assert "gru: " in both.json()["error"]
    assert "cream-new" in all_items(client)
    assert "cream-new" not in all_items(client, model="gru")


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ([], "items: List should have at least 1"),
        ([{"title": "x"}], "item"),
        ([{"item": "a", "title": "x"}, {"item": "b"}], "the same columns"),
        ([{"item": "a", "title": "x"}, {"item": 7, "title": "x"}], "disagree on a column"),
        ([{"item": 2**70, "title": "x"}], ""),
        ([{"item": [], "title": "x"}], "ids of items must be"),
        ([{"item": "a", "title": ["x"]}], "'title' of items must be"),
        ([{"item": "a", "title": {"deep": 1}}], "items.0.title"),
    ],
    ids=["none", "no id", "columns", "kinds", "long number", "list", "list title", "deep"],
)
def test_items_that_cannot_be_taken_change_nothing(opened, shop, items: list, error: str):
    client = opened(shop / "text")
    before = client.get("/version").json()
    answer = client.post("/items", json={"items": items})
    assert answer.status_code == 422
    assert error in json.dumps(answer.json())
    assert client.get("/version").json() == before


def test_changes_are_kept_in_a_journal_of_each_model(opened, shop: Path, tmp_path: Path):
    first = opened(journal=tmp_path / "live")
    first.post("/items/remove", json={"ids": ["lamp-0"]})
    assert first.post("/items/compact").json() == {"models": {"text": {}, "gru": {}}}
    first.app.state.service.close()
    again = opened(shop / "gru", journal=tmp_path / "live")
    assert "lamp-0" not in all_items(again)


def test_a_journal_is_let_go_where_another_run_cannot_be_opened(shop: Path, tmp_path: Path):
    with pytest.raises(InputError, match="nowhere"):
        Service.open([shop / "gru", tmp_path / "nowhere"], ServiceConfig(journal=tmp_path))
    Retriever.load(shop / "gru", journal=tmp_path / "gru.journal").close()


def test_a_run_in_the_same_place_is_taken_over_and_a_bad_one_refused(
    opened, shop: Path, tmp_path: Path
):
    place = tmp_path / "now"
    place.symlink_to(shop / "gru")
    client = opened(place)
    old = client.get("/version").json()["models"]["now"]["fingerprint"]
    report(client, "ann", "lamp-1", model="now")
    place.unlink()
    shutil.copytree(shop / "text", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    place.symlink_to(tmp_path / "broken")
    refused = client.post("/reload", json={})
    assert refused.status_code == 409
    assert refused.json()["model_version"] == old[:12]
    assert "refused: " in refused.json()["error"]
    assert report(client, "ann", "lamp-2", model="now")["events"] == 2
    place.unlink()
    place.symlink_to(shop / "text")
    taken = client.post("/reload", json={"model": "now"}).json()
    assert (taken["took_over"], taken["reason"]) == (True, None)
    assert taken["model_version"] != old[:12]
    assert report(client, "ann", "lamp-1", model="now")["events"] == 1
    lines = client.get("/metrics").text.splitlines()
    assert 'recsys_reloads_total{model="now",took_over="false"} 1.0' in lines
    assert 'recsys_reloads_total{model="now",took_over="true"} 1.0' in lines


def test_a_run_that_appears_in_the_place_is_taken_over_where_that_is_asked_for(
    opened, shop: Path, tmp_path: Path
):
    place = tmp_path / "now"
    place.symlink_to(shop / "gru")
    client = opened(place, watch_s=0.02)
    (tmp_path / "next").symlink_to(shop / "text")
    (tmp_path / "next").rename(place)
    wanted = Retriever.load(shop / "text").fingerprint
    deadline = time.monotonic() + 20
    while client.get("/version").json()["models"]["now"]["fingerprint"] != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert client.post("/recommend", json={"history": CREAMS}).status_code == 200


def test_as_many_users_are_kept_in_the_process_as_are_asked_for(opened):
    client = opened(max_users=2)
    for user in ("a", "b", "c"):
        report(client, user, "lamp-1")
    assert report(client, "c", "lamp-1")["events"] == 2
    assert report(client, "a", "lamp-1")["events"] == 1


def test_two_runs_of_one_name_are_refused(shop: Path, tmp_path: Path):
    shutil.copytree(shop / "gru", tmp_path / "gru")
    with pytest.raises(InputError, match="under its folder's name: gru, gru"):
        Service.open([shop / "gru", tmp_path / "gru"], ServiceConfig())


def test_a_model_that_takes_no_single_events_says_so(opened, shop: Path, tmp_path: Path):
    from untrained import log, saved_run

    from recsys.run import prepare

    dataset = prepare(log(), tmp_path / "data")
    run = saved_run(tmp_path / "popular", dataset, tmp_path / "data", "popular")
    client = opened(run)
    assert client.post("/recommend", json={"history": ["i1"], "k": 2}).status_code == 200
    for path, body in (
        ("/events", {"user": "u", "events": [{"item": "i1"}]}),
        ("/recommend", {"user": "u"}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 422
        assert "does not take events one by one" in answer.json()["error"]
    similar = client.get("/similar", params={"item": "i1"})
    assert similar.status_code == 422


class _ReloadsMeanwhile(MemoryStore):
    """Another run takes over while the store is first asked."""

    def __init__(self, reload: Callable[[], None]):
        super().__init__()
        self._reload: Callable[[], None] | None = reload

    def get(self, user: str, model: str) -> Stored | None:
        if self._reload is not None:
            reload, self._reload = self._reload, None
            reload()
        return super().get(user, model)


@pytest.mark.parametrize("ask", ["events", "recommend"])
def test_a_run_that_takes_over_in_the_middle_of_a_request_spoils_no_state(
    opened, shop: Path, tmp_path: Path, ask: str
):
    place = tmp_path / "now"

    def serve(name: str) -> None:
        place.unlink(missing_ok=True)
        place.symlink_to(shop / name)

    def take_over(name: str) -> None:
        serve(name)
        assert client.post("/reload", json={}).status_code == 200

    serve("gru")
    client = opened(place)
    report(client, "old", "lamp-1", model="now")
    service = client.app.state.service
    service.store = _ReloadsMeanwhile(lambda: take_over("text"))
    if ask == "events":
        assert report(client, "ann", "lamp-1", model="now")["events"] == 1
    else:
        assert client.post("/recommend", json={"user": "old"}).json()["fallback"] == "popularity"
    take_over("gru")
    assert report(client, "ann", "lamp-2", model="now")["events"] == 1
    assert client.post("/recommend", json={"user": "ann"}).status_code == 200


def test_a_run_that_takes_over_between_a_list_and_its_reasons_gives_both(
    opened, shop: Path, tmp_path: Path, monkeypatch
):
    place = tmp_path / "now"
    place.symlink_to(shop / "gru")
    client = opened(place)
    reasons, taken = Retriever.reasons, []

    def late(self: Retriever, *given: Any, **named: Any) -> object:
        if not taken:
            place.unlink()
            place.symlink_to(shop / "text")
            taken.append(self.reload(place).took_over)
        return reasons(self, *given, **named)

    history = ["lamp-1", "soap-1", "soap-2"]
    monkeypatch.setattr(Retriever, "reasons", late)
    body = client.post("/recommend", json={"history": history, "k": 4, "reasons": True}).json()
    assert taken == [True]
    other = Retriever.load(shop / "text")
    wanted = other.recommend(history, k=4)
    assert (body["model_version"], body["model"]) == (wanted.model_version, "now")
    assert [item["item"] for item in body["items"]] == wanted.items
    for item, reason in zip(body["items"], reasons(other, history, wanted.items), strict=True):
        assert (item["because"] and item["because"]["item"]) == (reason and reason.item)


def test_a_run_whose_weights_are_no_numbers_is_refused(opened, shop: Path, tmp_path: Path):
    shutil.copytree(shop / "text", tmp_path / "text")
    client = opened(tmp_path / "text")
    weights, _ = read_tensors(tmp_path / "text" / WEIGHTS)
    write_tensors(
        tmp_path / "text" / WEIGHTS,
        {k: v.fill_(torch.nan) if v.is_floating_point() else v for k, v in weights.items()},
    )
    refused = client.post("/reload", json={})
    assert refused.status_code == 409
    assert (
        "model.safetensors is damaged: vectors of items are not finite" in refused.json()["error"]
    )
    assert client.post("/recommend", json={"history": CREAMS}).status_code == 200


def test_a_run_that_breaks_in_an_unforeseen_way_is_refused_and_logged(
    opened, shop: Path, monkeypatch, caplog
):
    def broken(*args: object) -> None:
        raise ZeroDivisionError("half a model")

    client = opened(shop / "gru")
    monkeypatch.setattr("recsys.retrieval.retriever.opened", broken)
    refused = client.post("/reload", json={})
    assert refused.status_code == 409
    assert "ZeroDivisionError: half a model" in refused.json()["error"]
    assert any(record.exc_info for record in caplog.records)
    assert client.post("/recommend", json={"history": CREAMS}).status_code == 200


@pytest.mark.parametrize("item", ["x" * 1001, True, 1.5, None, ["a"]])
def test_an_item_is_not_taken_under_an_id_that_cannot_be_asked_for(client: TestClient, item):
    answer = client.post("/items", json={"items": [{"item": item, "title": "shiny soap"}]})
    assert answer.status_code == 422
    assert "ids of items must be whole numbers or texts of at most 1,000" in answer.json()["error"]


@pytest.mark.parametrize("row", ['"a", "title": "\\ud800"', '"\\ud800", "title": "a"'])
def test_half_a_character_is_refused(client: TestClient, row: str):
    body = f'{{"items": [{{"item": {row}}}]}}'
    answer = client.post("/items", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert client.post("/recommend", json={"history": CREAMS}).status_code == 200


def test_long_ids_of_the_catalogue_are_answered_with(opened, shop: Path):
    client, long = opened(shop / "text"), "cream" * 1000
    table = pa.table({"item": [long], "title": ["shiny cream"]})
    client.app.state.service.models["text"].retriever.upsert_items(table)
    assert client.get("/items", params={"search": "creamcream"}).json()["total"] == 1
    assert long in all_items(client)


def test_a_state_of_items_that_are_gone_is_begun_anew(
    opened, shop: Path, caplog: pytest.LogCaptureFixture
):
    first, second = opened(shop / "text"), opened(shop / "text")
    first.post("/items", json={"items": NEW})
    report(first, "ann", "cream-1", "hose-new", model="text")
    mark = Retriever.load(shop / "text").fingerprint
    stored = first.app.state.service.store.get("ann", mark)
    second.app.state.service.store.swap("ann", mark, stored.data, None)
    answer = second.post("/recommend", json={"user": "ann"})
    assert (answer.status_code, answer.json()["fallback"]) == (200, "popularity")
    assert report(second, "ann", "cream-1", model="text")["events"] == 1


def test_a_model_over_gaps_is_served(opened, tmp_path: Path):
    log = [{"user": u, "item": (u + t) % 9, "time": 5 * t} for u in range(12) for t in range(5)]
    short = {"model.dim": 8, "model.time": "gaps", "trainer.epochs": 1}
    client = opened(train(pd.DataFrame(log), "lssl_rec", tmp_path / "gaps", settings=short))
    body = {"history": [1, 2], "times": [0, 5], "k": 3}
    assert len(client.post("/recommend", json=body).json()["items"]) == 3
