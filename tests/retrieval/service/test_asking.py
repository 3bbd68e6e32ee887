"""What is asked of the service is what a retriever says of the same run."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from recsys.retrieval import Retriever
from recsys.retrieval.service import bodies

CREAMS = ["cream-1", "cream-2"]


def test_a_history_gets_the_list_of_the_retriever(client: TestClient, shop: Path):
    answer = client.post("/recommend", json={"history": [*CREAMS, "unheard of"], "k": 5})
    wanted = Retriever.load(shop / "text").recommend([*CREAMS, "unheard of"], k=5)
    body = answer.json()
    assert answer.status_code == 200
    assert [item["item"] for item in body["items"]] == wanted.items
    assert [item["title"] for item in body["items"]] == wanted.titles
    assert [item["score"] for item in body["items"]] == pytest.approx(wanted.scores, abs=1e-5)
    assert body["unknown"] == ["unheard of"]
    assert (body["model"], body["model_version"]) == ("text", wanted.model_version)
    assert (body["fallback"], body["short"], body["index_version"]) == (None, None, None)


@pytest.mark.parametrize(
    "conditions",
    [
        {"exclude": ["cream-3"]},
        {"exclude_seen": False},
        {"allow": ["hose-1", "hose-2", "lamp-1"]},
        {"filters": "title like '%hose%' and price < 3"},
        {"diversity": 0.7},
        {"score": "probability"},
        {"k": 100},
    ],
    ids=lambda conditions: next(iter(conditions)),
)
def test_conditions_are_those_of_the_retriever(client: TestClient, shop: Path, conditions: dict):
    body = client.post("/recommend", json={"history": CREAMS, "k": 6, **conditions}).json()
    wanted = Retriever.load(shop / "text").recommend(CREAMS, **{"k": 6, **conditions})
    assert [item["item"] for item in body["items"]] == wanted.items
    assert [item["score"] for item in body["items"]] == pytest.approx(wanted.scores, abs=1e-5)
    assert body["short"] == wanted.short


def test_a_model_is_asked_by_its_name(client: TestClient, shop: Path):
    body = client.post("/recommend", json={"history": CREAMS, "model": "gru"}).json()
    assert [item["item"] for item in body["items"]] == Retriever.load(shop / "gru").recommend(
        CREAMS
    ).items
    missing = client.post("/recommend", json={"history": CREAMS, "model": "mamba"})
    assert missing.status_code == 404
    assert missing.json() == {"error": "no such model is served, but text, gru"}


def test_a_history_that_is_not_known_falls_back_and_says_so(client: TestClient):
    body = client.post("/recommend", json={"history": [], "k": 3}).json()
    assert body["fallback"] == "popularity"
    assert len(body["items"]) == 3


def test_many_histories_get_a_list_each(client: TestClient, shop: Path):
    histories = [CREAMS, [], ["lamp-0"], ["unheard of"]]
    lists = client.post("/recommend/batch", json={"histories": histories, "k": 4}).json()["lists"]
    wanted = Retriever.load(shop / "text").recommend_batch(histories, k=4)
    assert [[item["item"] for item in one["items"]] for one in lists] == [w.items for w in wanted]
    assert client.post("/recommend/batch", json={"histories": []}).json() == {"lists": []}


def test_a_batch_is_the_answers_to_its_histories_byte_for_byte(client: TestClient):
    # One known history alone: scores of several at once may differ in their last digit.
    histories = [CREAMS, [], ["unheard of"]]
    alone = [client.post("/recommend", json={"history": one, "k": 4}) for one in histories]
    batch = client.post("/recommend/batch", json={"histories": histories, "k": 4})
    assert batch.content == b'{"lists":[' + b",".join(one.content for one in alone) + b"]}"
    assert batch.headers["content-type"] == "application/json"


def test_a_batch_asks_for_no_more_items_than_health_checks_can_wait_for(client: TestClient):
    def ask(lists: int, k: int, **more: object) -> tuple[int, dict]:
        answer = client.post("/recommend/batch", json={"histories": [[]] * lists, "k": k, **more})
        return answer.status_code, answer.json()

    error = "a batch asks for at most 50,000 items: lists times k, here 51 x 1,000"
    assert ask(51, 1000) == (422, {"error": error})
    assert ask(1000, 51)[0] == 422
    assert ask(50, 1000)[0] == 200
    assert ask(1000, 50, filters="item = 'cream-1'")[0] == 200


def test_health_is_answered_while_the_answer_to_a_batch_is_written(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    begun, free = threading.Event(), threading.Event()
    write = bodies.answer

    def waits(*given: object) -> bodies.Answer:
        begun.set()
        assert free.wait(10)
        return write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(bodies, "answer", waits)
    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(client.post, "/recommend/batch", json={"histories": [CREAMS]})
        assert begun.wait(10)
        assert client.get("/healthz").status_code == 200
        free.set()
        assert batch.result().status_code == 200


def test_questions_that_come_together_are_answered_as_if_alone(client: TestClient, shop: Path):
    retriever = Retriever.load(shop / "text")
    kinds = ("cream", "hose", "lamp", "soap")
    asked = [
        {"history": [f"{kinds[n % 4]}-{n % 6}"], "k": 3 + n % 2, "exclude_seen": n % 3 > 0}
        for n in range(60)
    ]
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda body: client.post("/recommend", json=body), asked))
    for body, answer in zip(asked, answers, strict=True):
        wanted = retriever.recommend(**body)
        assert [item["item"] for item in answer.json()["items"]] == wanted.items
    sizes = client.get("/metrics").text
    (batches,) = [line for line in sizes.splitlines() if "recsys_batch_size_count" in line]
    assert float(batches.split()[-1]) <= 60


def test_a_faulty_question_spoils_no_other(client: TestClient):
    def ask(number: int) -> int:
        filters = "price <" if number % 2 else "title like '%e%'"
        body = {"history": CREAMS, "filters": filters}
        return client.post("/recommend", json=body).status_code

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(24))) == [200, 422] * 12


def test_similar_items_are_those_of_the_retriever(client: TestClient, shop: Path):
    body = client.get("/similar", params={"item": "soap-1", "k": 4}).json()
    wanted = Retriever.load(shop / "text").similar_items("soap-1", 4)
    assert [item["item"] for item in body["items"]] == wanted.items
    unknown = client.get("/similar", params={"item": "unheard of"})
    assert unknown.status_code == 422
    assert "unheard of" in unknown.json()["error"]


def test_the_catalogue_is_searched_by_words(client: TestClient):
    body = client.get("/items", params={"search": "SHINY number3", "limit": 3}).json()
    assert body["total"] == 4
    assert len(body["items"]) == 3
    assert {"item", "title", "available", "count"} == body["items"][0].keys()
    assert all("number3" in item["title"] for item in body["items"])


def test_the_reason_is_the_retriever_s(client: TestClient, shop: Path):
    history = ["lamp-1", "soap-1", "soap-2"]
    items = client.post("/recommend", json={"history": history, "k": 5, "reasons": True}).json()
    found = [item["item"] for item in items["items"]]
    wanted = Retriever.load(shop / "text").reasons(history, found)
    for item, reason in zip(items["items"], wanted, strict=True):
        because = item["because"]
        assert (because and because["item"]) == (reason and reason.item)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "give a history or a user"),
        ({"history": ["a"], "user": "u"}, "give a history or a user"),
        ({"history": ["a"], "k": 0}, "k: Input should be greater than or equal to 1"),
        ({"history": ["a"], "k": 2.5}, "k: Input should be a valid integer"),
        ({"history": ["a"], "top": 3}, "top: Extra inputs are not permitted"),
        ({"history": [True]}, "history.0: an id is a string of 1,000 signs or a number of 64 bits"),
        ({"history": [2**63]}, "history.0: an id is a string"),
        ({"history": ["a", "b"], "times": [1]}, "times must name one time for each"),
        ({"user": "u", "reasons": True}, "times and reasons go with a history"),
        ({"history": ["cream-1"], "filters": "price <"}, "the filter cannot be read"),
        ({"history": ["cream-1"], "filters": "colour = 'red'"}, "colour"),
        ({"history": ["a"] * 10_001}, "history: List should have at most 10000 items"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_said_in_one_line(client: TestClient, body: dict, error: str):
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 422
    assert error in answer.json()["error"]
    assert answer.json().keys() == {"error"}


def test_the_description_has_an_example_that_works_for_each_body(client: TestClient):
    description = client.get("/openapi.json").json()
    shown = {
        name: schema["examples"][0]
        for name, schema in description["components"]["schemas"].items()
        if "examples" in schema
    }
    assert shown.keys() >= {"Question", "Questions", "Events", "ItemsToUpsert", "ItemIds"}
    assert client.post("/recommend", json=shown["Question"]).status_code == 200
    assert client.post("/recommend/batch", json=shown["Questions"]).status_code == 200
    assert client.post("/items/availability", json=shown["Availability"]).status_code == 200
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            assert route.get("description"), f"{method} {path}"
