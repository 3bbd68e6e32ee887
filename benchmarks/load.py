"""A lean client of a service: each connection asks on as soon as it has its answer.

    python benchmarks/load.py < plan.json

The plan is {"host", "port", "connections", "warm_up_seconds", "seconds", "scripts"}. A script is a
list of questions [path, body] that one connection asks in this order; the connections share the
scripts out among themselves and begin anew when they are through. A list must hold ten items, and
reported events must be counted; everything else is a failure. Prints one JSON object: requests a
second, milliseconds by path, failures. Imports nothing that it could do without.
"""

import json
import re
import selectors
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
ITEMS = 10
FAILURES = 5
"""Failures that are told; all are counted."""
Question = tuple[str, bytes]
"""A path, and the bytes to send."""


class Connection:
    """One question at a time."""

    def __init__(self, address: tuple[str, int], questions: Iterator[Question]):
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._questions = questions
        self.ask()

    def ask(self) -> None:
        """The next question."""
        self.path, request = next(self._questions)
        self._got, self._whole = b"", 0
        self.asked = time.perf_counter()
        self.socket.sendall(request)

    def answered(self) -> bool:
        """Whether the answer is whole with what came in now."""
        more = self.socket.recv(1 << 16)
        if not more:
            raise ConnectionError("the service closed the connection")
        self._got += more
        if not self._whole and (end := self._got.find(b"\r\n\r\n")) > 0:
            length = LENGTH.search(self._got[:end])
            if length is None:
                raise ConnectionError("an answer without a length")
            self._whole = end + 4 + int(length[1])
        return bool(self._whole) and len(self._got) >= self._whole

    def complaint(self) -> str | None:
        """What is wrong with the answer."""
        status, body = int(self._got[9:12]), self._got[self._got.find(b"\r\n\r\n") + 4 :]
        if status != 200:
            return f"{self.path}: {status} {body[:200].decode(errors='replace')}"
        answer = json.loads(body)
        if self.path == "/recommend" and len(answer["items"]) != ITEMS:
            return f"{self.path}: {len(answer['items'])} items: {answer['short']}"
        if self.path == "/events" and answer["events"] < 1:
            return f"{self.path}: no event was counted"
        return None


def drive(
    address: tuple[str, int],
    scripts: list[list[Question]],
    connections: int,
    warm_up_seconds: float,
    seconds: float,
) -> dict[str, Any]:
    """Ask for so long. Questions that are asked in the warm-up are not timed, but must be right."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    failures: list[str] = []
    waiting = selectors.DefaultSelector()
    for first in range(connections):
        one = Connection(address, _endless(scripts[first::connections]))
        waiting.register(one.socket, selectors.EVENT_READ, one)
    begin = time.perf_counter() + warm_up_seconds
    end = begin + seconds
    now = last = time.perf_counter()
    while now < end:
        for key, _ in waiting.select(1.0):
            one = key.data
            whole = one.answered()
            now = time.perf_counter()
            if not whole:
                continue
            if complaint := one.complaint():
                failures.append(complaint)
            elif one.asked >= begin and now < end:
                times[one.path].append(1e3 * (now - one.asked))
                last = now
            one.ask()
        now = time.perf_counter()
        if now - last > 30 and now > begin:
            raise ConnectionError("no answer for 30 s")
    every = sum(map(len, times.values()))
    return {
        "requests": every,
        "requests_per_second": round(every / seconds, 1),
        "milliseconds": {path: _summary(sorted(took)) for path, took in times.items()},
        "failed": len(failures),
        "failures": failures[:FAILURES],
    }


def _endless(scripts: list[list[Question]]) -> Iterator[Question]:
    while True:
        for script in scripts:
            yield from script


def _summary(took: list[float]) -> dict[str, float]:
    """Of sorted milliseconds."""
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    places = {name: round(share * (len(took) - 1)) for name, share in shares.items()}
    found = {name: round(took[place], 2) for name, place in places.items()}
    return {"requests": len(took), **found}


def _question(path: str, body: dict[str, Any], host: str) -> Question:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    return path, head.encode() + data


def main() -> None:
    """Drive as the plan says."""
    plan = json.load(sys.stdin)
    scripts = [
        [_question(path, body, plan["host"]) for path, body in script] for script in plan["scripts"]
    ]
    found = drive(
        (plan["host"], plan["port"]),
        scripts,
        plan["connections"],
        plan["warm_up_seconds"],
        plan["seconds"],
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
