"""The service as a process: what it says, how it starts and how it stops."""

import http.client
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from recsys import cli
from recsys.errors import InputError, WorkError
from recsys.retrieval.service import ServiceConfig, serve
from recsys.retrieval.service.logs import SOURCES

JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """The service takes them over for its process, which here is that of the tests."""
    loggers = [logging.getLogger(name) for name in SOURCES]
    kept = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, kept, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def connected(url: str) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=30))


def post(connection: http.client.HTTPConnection, path: str, body: dict) -> tuple[int, dict]:
    connection.request("POST", path, json.dumps(body), JSON)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_told_to_stop_and_answers_what_is_at_work(shop: Path, stop: int):
    command = [sys.executable, "-m", "recsys.cli", "serve", str(shop / "gru"), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with process, ExitStack() as stack:
        assert process.stderr is not None
        first = json.loads(process.stderr.readline())
        assert first["event"] == "serving"
        connection, other = (stack.enter_context(connected(first["url"])) for _ in range(2))
        status, body = post(connection, "/recommend", {"history": ["cream-1"], "k": 3})
        assert (status, len(body["items"])) == (200, 3)
        histories = [["cream-1", "soap-2"]] * 1000
        answers: list[tuple[int, dict]] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                post(connection, "/recommend/batch", {"histories": histories, "k": 20})
            )
        )
        asking.start()
        waiting = 0.0
        while waiting < 2:  # this question and the one that is at work
            other.request("GET", "/metrics")
            text = other.getresponse().read().decode()
            (line,) = [one for one in text.splitlines() if one.startswith("recsys_waiting ")]
            waiting = float(line.split()[1])
            if answers:
                break
        process.send_signal(stop)
        asking.join()
        assert answers[0][0] == 200
        assert len(answers[0][1]["lists"]) == 1000
        last = process.stderr.read().splitlines()[-1]
        assert json.loads(last)["event"] == "stopped"
        assert process.wait(30) == 0


def test_an_address_that_is_taken_is_named(shop: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(WorkError, match=f"127.0.0.1:{port} cannot be listened on"):
            serve([shop / "gru"], ServiceConfig(port=port))
    with pytest.raises(InputError, match="names no address of this machine"):
        serve([shop / "gru"], ServiceConfig(host="no host"))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere"], "nowhere"),
        (["{gru}", "--keys", "nowhere.toml"], "there is no file of keys nowhere.toml"),
        (["{gru}", "--redis", "http://host"], "the address of a Redis server is"),
        (["{gru}", "--port", "70000"], "--port must lie in"),
    ],
)
def test_wrong_usage_ends_with_one_line(shop: Path, capsys, arguments: list[str], error: str):
    given = [word.replace("{gru}", str(shop / "gru")) for word in arguments]
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", *given, *([] if "--port" in given else ["--port", "0"])])
    assert left.value.code == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert error in line


def test_a_missing_package_is_named_with_its_extra(shop: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"needs the package uvicorn: pip install 'recsys\[serve"):
        serve([shop / "gru"], ServiceConfig())
