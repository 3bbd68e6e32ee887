"""Keys, limits, timeouts, logs and metrics: what stands before every request."""

import asyncio
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from recsys.errors import InputError, WorkError
from recsys.retrieval import Retriever
from recsys.retrieval.service.config import ServiceConfig
from recsys.retrieval.service.keys import read_keys
from recsys.retrieval.service.logs import JsonLines

READ = {"authorization": "Bearer reader-0123456789"}
ADMIN = {"authorization": "Bearer admin-0123456789"}
OPEN = {("get", "/healthz"), ("get", "/readyz")}
ADMINISTERING = {
    ("delete", "/users/{user}"),
    ("post", "/items"),
    ("post", "/items/availability"),
    ("post", "/items/compact"),
    ("post", "/items/remove"),
    ("post", "/reload"),
}


def test_every_route_asks_for_the_key_of_its_role(opened, keys: Path):
    client = opened(keys=keys)
    description = client.get("/openapi.json").json()["paths"]
    for path, methods in description.items():
        for method in methods:
            place = path.replace("{user}", "u")

            def status(headers: dict, method: str = method, place: str = place) -> int:
                return client.request(method, place, headers=headers).status_code

            wrong = {"authorization": "Bearer reader-0123456780"}
            if (method, path) in OPEN:
                assert status({}) == 200
                continue
            assert status({}) == status(wrong) == 401, (method, path)
            assert status({"authorization": "Basic reader-0123456789"}) == 401
            forbidden = (method, path) in ADMINISTERING
            assert (status(READ) == 403) == forbidden, (method, path)
            assert status(ADMIN) not in (401, 403), (method, path)


def test_a_refusal_says_what_to_bring(opened, keys: Path):
    answer = opened(keys=keys).get("/version")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"error": "an API key is needed"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "holds no key"),
        ('read = "reader-0123456789"', "read is a list of keys"),
        ('read = ["short"]', "key 1 of read must be 16 or more ASCII signs"),
        ('read = ["with spaces 0123456789"]', "key 1 of read"),
        ('write = ["reader-0123456789"]', "unknown 'write'"),
        ('read = ["reader-0123456789"]\nadmin = ["reader-0123456789"]', "names a key twice"),
        ("read = [", "is not TOML"),
    ],
)
def test_a_faulty_file_of_keys_is_refused_and_no_key_is_shown(tmp_path: Path, text, error):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=error) as refused:
        read_keys(path)
    assert "reader" not in str(refused.value)
    with pytest.raises(InputError, match="there is no file of keys"):
        read_keys(tmp_path / "nowhere.toml")


def test_roles_are_told_apart_by_the_whole_key(keys: Path):
    known = read_keys(keys)
    assert known.role("reader-0123456789") == "read"
    assert known.role("admin-0123456789") == "admin"
    for wrong in (
        None,
        "",
        "reader-012345678",
        "reader-01234567890",
        "READER-0123456789",
        "\ud800",
    ):
        assert known.role(wrong) is None
    assert b"reader" not in repr(known).encode()


def test_without_keys_other_names_for_this_machine_are_refused(opened, keys: Path):
    client = opened()
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000"):
        assert client.get("/version", headers={"host": host}).status_code == 200
    for host in ("shop.example", "localhost.shop.example", "", "127.0.0.1.example:80"):
        assert client.get("/version", headers={"host": host}).status_code == 403
    behind = {"host": "shop.example", **READ}
    assert opened(keys=keys).get("/version", headers=behind).status_code == 200
    public = opened(host="0.0.0.0")
    assert public.get("/version", headers={"host": "shop.example"}).status_code == 200


OTHERS = ("https://shop.example", "http://localhost.shop.example:80", "http://127.0.0.1.x", "null")


@pytest.mark.parametrize("origin", [*OTHERS, "", "http://shop.example#127.0.0.1", "127.0.0.1"])
def test_without_keys_a_page_of_another_site_changes_nothing(opened, origin: str):
    client = opened()
    before = client.get("/version").json()
    sender = {"origin": origin, "content-type": "application/json"}
    for path, body in (
        ("/items/remove", {"ids": ["cream-1"]}),
        ("/items/compact", None),
        ("/recommend", {"history": []}),
    ):
        answer = client.post(path, content=json.dumps(body), headers=sender)
        assert answer.status_code == 403
        assert answer.json() == {"error": "without keys no page of another site may ask"}
    assert client.get("/version").json() == before


@pytest.mark.parametrize("host", ["127.0.0.1:8017", "localhost", "[::1]:8017"])
def test_without_keys_the_service_s_own_page_and_links_to_it_are_answered(opened, host: str):
    client = opened()
    page = {"host": host, "origin": f"http://{host}"}
    assert client.post("/recommend", json={"history": []}, headers=page).status_code == 200
    link = {"host": host, "referer": "https://shop.example/", "sec-fetch-site": "cross-site"}
    assert client.get("/", headers=link).status_code == 200


def test_where_a_key_is_asked_for_or_all_may_ask_a_page_may_be_of_any_site(opened, keys: Path):
    page = {"origin": "https://shop.example"}
    question = {"history": []}
    for client in (opened(keys=keys), opened(host="0.0.0.0")):
        answer = client.post("/recommend", json=question, headers={**page, **READ})
        assert answer.status_code == 200


def test_a_body_over_the_limit_is_refused_however_it_is_sent(opened):
    client = opened(max_body=200)
    small = client.post("/recommend", json={"history": ["cream-1"]})
    assert small.status_code == 200
    large = b'{"history": [' + b'"cream-1",' * 50 + b'"cream-1"]}'
    json_type = {"content-type": "application/json"}
    assert client.post("/recommend", content=large, headers=json_type).status_code == 413
    pieces = (large[place : place + 50] for place in range(0, len(large), 50))
    answer = client.post("/recommend", content=pieces, headers=json_type)
    assert answer.status_code == 413
    assert answer.json() == {"error": "a body has at most 200 bytes"}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch):
    """Questions wait until the event is set."""
    free = threading.Event()
    answer = Retriever.recommend_batch

    def waits(self: Retriever, *args: object, **named: object) -> object:
        assert free.wait(20)
        return answer(self, *args, **named)  # type: ignore[arg-type]

    def hold() -> threading.Event:
        monkeypatch.setattr(Retriever, "recommend_batch", waits)
        return free

    yield hold
    free.set()


def test_a_question_that_takes_too_long_is_given_up(opened, held):
    client = opened(timeout_s=0.2)
    free = held()
    started = time.perf_counter()
    answer = client.post("/recommend", json={"history": ["cream-1"]})
    assert time.perf_counter() - started < 5
    assert answer.status_code == 504
    assert answer.json() == {"error": "not answered within 0.2 s"}
    free.set()
    assert client.post("/recommend", json={"history": ["cream-1"]}).status_code == 200


def dripped(client: TestClient, path: str, body: bytes, ends: bool) -> tuple[int, dict, dict]:
    """(status, headers, body) of the answer to a body that comes a byte each 50 ms, and then ends
    or does not."""
    sent: list[dict[str, Any]] = []
    left = [bytes([byte]) for byte in body]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        more = len(left) > 1 or not ends
        return {"type": "http.request", "body": left.pop(0) if left else b" ", "more_body": more}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    asyncio.run(asyncio.wait_for(client.app({**scope, "headers": headers}, receive, send), 10))
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


@pytest.mark.parametrize("path", ["/reload", "/items"])
def test_a_body_that_does_not_end_holds_no_place_for_good(opened, keys: Path, path: str):
    client = opened(timeout_s=0.4, keys=keys)
    status, headers, body = dripped(client, path, b"{", ends=False)
    assert (status, body) == (408, {"error": "the body did not come within 0.4 s"})
    assert headers[b"connection"] == b"close"
    assert client.app.state.service.waiting == 0


def test_a_change_takes_its_time_once_its_body_is_there(opened, monkeypatch):
    client = opened(timeout_s=0.4)
    reload = Retriever.reload

    def slow(self: Retriever, run: Path) -> object:
        time.sleep(0.6)
        return reload(self, run)

    monkeypatch.setattr(Retriever, "reload", slow)
    status, _, body = dripped(client, "/reload", b"{}", ends=True)
    assert (status, body["took_over"]) == (200, True)


def test_more_than_may_wait_are_sent_away_and_health_is_answered(opened, held):
    client = opened(max_waiting=2)
    free = held()
    answers: list[int] = []

    def ask() -> None:
        answers.append(client.post("/recommend", json={"history": ["cream-1"]}).status_code)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    service = client.app.state.service
    while service.waiting < 2:
        time.sleep(0.01)
    full = client.post("/recommend", json={"history": ["cream-1"]})
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    assert client.get("/healthz").status_code == 200
    free.set()
    for thread in asking:
        thread.join()
    assert answers == [200, 200]
    assert service.waiting == 0


def test_a_store_that_is_away_is_said_and_the_service_lives(opened, monkeypatch, caplog):
    client = opened()

    def away(*args: object) -> None:
        raise WorkError("the Redis server at localhost:1 cannot be reached: Connection refused")

    monkeypatch.setattr(client.app.state.service.store, "get", away)
    with caplog.at_level(logging.INFO, logger="recsys.service"):
        answer = client.post("/events", json={"user": "u", "events": [{"item": "cream-1"}]})
    assert answer.status_code == 503
    assert "cannot be reached" in answer.json()["error"]
    assert json.loads(JsonLines().format(caplog.records[-1]))["error"] == answer.json()["error"]
    assert client.post("/recommend", json={"history": ["cream-1"]}).status_code == 200


def test_a_failure_inside_shows_its_number_and_no_more(opened, monkeypatch, caplog):
    client = opened()

    def broken(*args: object, **named: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(Retriever, "recommend_batch", broken)
    with caplog.at_level(logging.INFO, logger="recsys.service"):
        answer = client.post("/recommend", json={"history": ["cream-1"]})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]
    assert any(record.exc_info for record in caplog.records)


def test_the_log_is_json_and_names_no_user(opened, caplog):
    with caplog.at_level(logging.INFO, logger="recsys.service"):
        client = opened()
        client.post("/events", json={"user": "ann-17", "events": [{"item": "cream-1"}]})
        client.post("/recommend", json={"user": "ann-17", "k": 3})
        client.delete("/users/ann-17")
        client.get("/nowhere/ann-17")
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["route"] for line in requests] == [
        "/events",
        "/recommend",
        "/users/{user}",
        "none",
    ]
    assert requests[1]["items"] == 3
    assert "ann-17" not in json.dumps(lines)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="recsys.service"):
        opened(log_users=True).post("/recommend", json={"user": "ann-17"})
    (line,) = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert line["user"] == "ann-17"


def test_metrics_count_by_route_and_not_by_user(client: TestClient):
    client.post("/recommend", json={"history": ["unheard of"], "k": 100})
    client.post("/recommend", json={"history": ["cream-1"], "k": 0})
    client.delete("/users/ann-17")
    for method in ("BREW", "BREW2"):
        client.request(method, "/healthz")
    lines = client.get("/metrics").text.splitlines()
    assert not any("BREW" in line for line in lines)
    for wanted in (
        'recsys_requests_total{method="other",route="/healthz",status="405"} 2.0',
        'recsys_requests_total{method="POST",route="/recommend",status="200"} 1.0',
        'recsys_requests_total{method="POST",route="/recommend",status="422"} 1.0',
        'recsys_requests_total{method="DELETE",route="/users/{user}",status="200"} 1.0',
        'recsys_request_seconds_count{route="/recommend"} 2.0',
        'recsys_batch_size_count{model="text"} 1.0',
        'recsys_fallbacks_total{model="text"} 1.0',
        'recsys_short_lists_total{model="text"} 1.0',
        'recsys_unknown_ids_total{model="text"} 1.0',
        'recsys_items{model="gru"} 24.0',
        'recsys_items_available{model="gru"} 24.0',
    ):
        assert wanted in lines
    assert not [line for line in lines if "ann-17" in line]


def test_answers_forbid_what_a_browser_might_do_with_them(client: TestClient):
    headers = client.get("/").headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/nowhere").headers["x-request-id"] != headers["x-request-id"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"port": 70_000}, "--port must lie in"),
        ({"timeout_s": 0.0}, "--timeout must be positive"),
        ({"watch_s": float("inf")}, "--watch must be positive"),
        ({"max_body": -1}, "--max-body must be positive"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, error: str):
    with pytest.raises(InputError, match=error):
        ServiceConfig(**options)
