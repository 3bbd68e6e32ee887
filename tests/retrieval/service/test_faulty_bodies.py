"""Bodies that no one should send: each is answered, and none brings the service down."""

import json
import random
from copy import deepcopy
from typing import Any

import pytest
from fastapi.testclient import TestClient

PATHS = (
    "/recommend",
    "/recommend/batch",
    "/events",
    "/items",
    "/items/remove",
    "/items/availability",
    "/items/compact",
    "/reload",
)
SOUND: list[dict[str, Any]] = [
    {"history": ["cream-1", "soap-2"], "k": 3, "filters": "title like '%e%'", "score": "product"},
    {"user": "u", "k": 3, "allow": ["cream-1"], "exclude": ["soap-1"], "diversity": 0.5},
    {"histories": [["cream-1"], []], "times": [[1], []], "k": 2, "model": "gru"},
    {"user": "u", "events": [{"item": "cream-1", "time": 3}, {"item": "lamp-1"}]},
    {"items": [{"item": "cream-1", "title": "shiny"}]},
    {"ids": ["nothing"], "available": True},
    {"model": "gru"},
]
VALUES: list[Any] = [
    None, True, -1, 0, 10**30, -(2**63) - 1, 1e308, float("nan"), float("inf"), "", "x" * 5000,
    "\ud800", "\x00", "'; drop table items --", "title like '" + "%" * 50, "((((", [], {}, [[]],
    [None], [{}], {"item": []}, {"": ""}, "product", "u/../..", "cream-1", 2**63 - 1, "²", "１",
]  # fmt: skip


def spoiled(random: random.Random) -> bytes:
    """A sound body with something done to it."""
    body = json.loads(json.dumps(random.choice(SOUND)))
    for _ in range(random.randint(1, 3)):
        place = body
        key: Any = random.choice(list(place))
        while isinstance(place[key], list | dict) and place[key] and random.random() < 0.6:
            place = place[key]
            key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[key] = deepcopy(random.choice(VALUES))
        if random.random() < 0.2:
            name = random.choice(["k", "history", "times", "items", "ids", "x"])
            body[name] = deepcopy(random.choice(VALUES))
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    kind = random.randrange(8)
    if kind == 0:
        text = text[: random.randrange(len(text))]
    elif kind == 1:
        place = random.randrange(len(text))
        text = text[:place] + random.randbytes(random.randint(1, 8)) + text[place + 1 :]
    elif kind == 2:
        text = random.choice(
            [
                b"[" * 50_000,
                b'{"history":' * 9000,
                b"",
                b"null",
                b"[]",
                b'"history"',
                b"\xff\xfe",
                b'{"k": ' + b"9" * 6000 + b"}",
                b'{"history": ["\\ud800"], "k": 1}',
                random.randbytes(300),
            ]
        )
    return text


def send_faulty(client: TestClient, number: int, seed: int) -> dict[int, int]:
    """How many answers had each status; every one is JSON, and an error has one line."""
    drawn = random.Random(seed)
    statuses: dict[int, int] = {}
    for _ in range(number):
        path, body = drawn.choice(PATHS), spoiled(drawn)
        kind = drawn.choice(["application/json"] * 9 + ["text/plain"])
        answer = client.post(path, content=body, headers={"content-type": kind})
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (path, body[:500], answer.text)
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert error
            assert "\n" not in error
            assert len(error) <= 1000
    return statuses


def test_faulty_bodies_are_answered_with_errors_of_the_sender(client: TestClient):
    statuses = send_faulty(client, 400, seed=0)
    assert statuses.keys() <= {200, 400, 404, 409, 413, 422}
    assert statuses[422] > 150
    assert statuses[400] > 20


@pytest.mark.slow
def test_ten_thousand_faulty_bodies_are_answered_with_errors_of_the_sender(client: TestClient):
    assert sum(send_faulty(client, 10_000, seed=1).values()) == 10_000
    assert client.get("/readyz").status_code == 200
