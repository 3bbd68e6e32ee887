"""What the clients of a soak share: the service that lives now, and what was found out about it."""

import http.client
import json
import os
import threading
import time
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

TOLD = 5
"""Failures of a kind that are told; all are counted."""
PATIENCE_S = 60.0
"""Longest wait for an answer."""


class Tally:
    """What was answered and what was not. Threads share it."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.declared: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest_ms: dict[str, float] = {}
        self._lock = threading.Lock()

    def answer(self, kind: str, seconds: float) -> None:
        """As it should be."""
        with self._lock:
            self.answered[kind] += 1
            self.slowest_ms[kind] = max(self.slowest_ms.get(kind, 0.0), round(1e3 * seconds, 1))

    def decline(self, why: str) -> None:
        """No answer, for a reason that a client must live with."""
        with self._lock:
            self.declared[why] += 1

    def failure(self, kind: str, what: str) -> None:
        """Something that must not be."""
        with self._lock:
            self.failed[kind] += 1
            if self.failed[kind] <= TOLD:
                self.failures.append(f"{kind}: {what[:500]}")


class Site:
    """Where the service is, and whether it is meant to live."""

    def __init__(self, link: Path, base: dict[str, str], port: int, keeps_events: bool):
        """`link` leads to the run that is served; `base` are titles of its items by id."""
        self.link = link
        self.base = base
        self.port = port
        self.keeps_events = keeps_events
        self.tally = Tally()
        self.stop = threading.Event()
        self.moving = threading.Lock()
        """Held while `link` leads to a run that must not be served."""
        self.life = 0
        """Number of the process that serves, or of the next one before it is begun."""
        self.up = threading.Event()
        """Cleared before the process is killed, set once the next one listens."""

    def point(self, run: Path) -> None:
        """Have `link` lead to another run, from one moment to the next."""
        aside = self.link.with_name(f".{self.link.name}")
        aside.symlink_to(run)
        os.replace(aside, self.link)


class Client:
    """Asks the service over a connection that it keeps, one question at a time."""

    def __init__(self, site: Site):
        self._site = site
        self._connection: http.client.HTTPConnection | None = None
        self.life = 0
        """Of the process at the other end."""

    def connected(self) -> bool:
        """Whether there is a process at the other end, looked for where there was none."""
        if self._connection is None:
            life = self._site.life
            connection = http.client.HTTPConnection("127.0.0.1", self._site.port, PATIENCE_S)
            connection.auto_open = 0
            try:
                connection.connect()
            except OSError as error:
                self._lost("connecting", life, error)
                return False
            if self._site.life != life:  # connected to either of the two
                connection.close()
                return False
            self._connection, self.life = connection, life
        return True

    def post(self, path: str, body: dict[str, Any], kind: str = "") -> dict[str, Any] | None:
        """The answer; None where there is none, which is counted."""
        return self._answer(kind or path, "POST", path, json.dumps(body), (200,))[1]

    def get(self, path: str, **query: str) -> dict[str, Any] | None:
        """The answer; None where there is none, which is counted."""
        where = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        return self._answer(path, "GET", where, None, (200,))[1]

    def reload(self) -> tuple[int, dict[str, Any] | None]:
        """(status, answer) of a reload, which may be refused."""
        return self._answer("/reload", "POST", "/reload", "{}", (200, 409))

    def close(self) -> None:
        """Ask over another connection next time."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answer(
        self, kind: str, method: str, where: str, body: str | None, expected: tuple[int, ...]
    ) -> tuple[int, dict[str, Any] | None]:
        if not self.connected():
            return 0, None
        assert self._connection is not None
        tally, started = self._site.tally, time.perf_counter()
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            self._connection.request(method, where, body, headers)
            response = self._connection.getresponse()
            status, data = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            self._lost(kind, self.life, error)
            return 0, None
        if status == 503:
            tally.decline("503")
            time.sleep(0.05)
            return status, None
        if status not in expected:
            tally.failure(kind, f"{status} {data[:300].decode(errors='replace')} to {where} {body}")
            return status, None
        tally.answer(kind, time.perf_counter() - started)
        return status, json.loads(data)

    def _lost(self, kind: str, life: int, error: Exception) -> None:
        """A connection to the process of a life was not made, or broke."""
        what = type(error).__name__
        if self._site.up.is_set() and self._site.life == life:
            self._site.tally.failure(kind, f"{what}: {error}")
        else:
            self._site.tally.decline(f"{what} at a kill")
