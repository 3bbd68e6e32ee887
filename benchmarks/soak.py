"""A service under everything at once, killed now and then: is anything lost, does memory stay flat?

    python benchmarks/soak.py                            (10 minutes)
    python benchmarks/soak.py --minutes 30 --redis       (events in a redis-server of its own)

A small shop whose items are known by id and text is served behind a link. Clients ask and report
events; administrators upsert, remove, change availability and compact; the link is moved between
two good runs and damaged ones, which must be refused. In the first half of the time the service is
killed every minute in the middle of all that and begun again: whatever it acknowledged must be
there, what it did not answer may be there or not. The second half has no kills: its memory is read
each second, and the mean of the last fifth must lie no more than 5 % above that of the first one
behind a warm-up. In the end it is stopped in order, begun once more and looked at again.

Refused and broken connections around a kill and answers 503 are counted; anything else that is not
as it must be fails the soak. Exit code 1 if it failed; a line of results either way.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from machine import emit, recsys
from served import Served, free_port
from soak_clients import OWN, Administrator, Reader, Reloader, Reporter
from soak_ledger import growth
from soak_site import Site

from recsys.checkpoint import CONFIG, ITEMS, WEIGHTS, read_tensors, write_tensors

READERS, REPORTERS, ADMINISTRATORS = 4, 2, 2
KILL_EVERY_S = 60.0
WARM_UP_S = 60.0
"""Time that memory may grow in; less where the soak is short."""
GROWTH = 5.0
"""Percent that memory may grow by afterwards."""
Actor = Reader | Reporter | Administrator | Reloader


def runs(folder: Path) -> tuple[list[Path], list[Path]]:
    """(two runs that can be served, runs that are damaged in one way each)."""
    recsys("data", "prepare", "sample", "--out", folder / "data")
    good = []
    for seed in (1, 2):
        good.append(folder / f"good-{seed}")
        settings = ["trainer.epochs=1", "model.item_encoder=id+text"]
        options = [word for setting in settings for word in ("--set", setting)]
        words = ["--model", "gru4rec", "--data", folder / "data", "--seed", seed, *options]
        recsys("train", *map(str, words), "--out", good[-1])
    damaged = []
    for name in ("cut", "no-config", "no-items", "no-numbers"):
        damaged.append(folder / name)
        shutil.copytree(good[0], damaged[-1])
    cut, no_config, no_items, no_numbers = damaged
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:-1000])
    (no_config / CONFIG).write_text("{")
    (no_items / ITEMS).unlink()
    tensors, metadata = read_tensors(no_numbers / WEIGHTS)
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    nothing = {name: torch.full_like(tensor, torch.nan) for name, tensor in floats.items()}
    write_tensors(no_numbers / WEIGHTS, {**tensors, **nothing}, metadata)
    return good, damaged


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The address of a server that has each write on disk before it answers."""
    port = free_port()
    folder.mkdir()
    words = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    options = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*words, *options], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"redis-server did not start: {(folder / 'log').read_text()}")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


class Lives:
    """One process after the other, at one port."""

    def __init__(self, site: Site, log: Path, options: list[str]):
        self._site, self._log, self._options = site, log, options
        self.memory: list[list[tuple[float, float]]] = []
        """(seconds, MB) of each life."""
        self.starts: list[float] = []
        """Seconds of each start."""
        self._began = 0.0
        self.start()

    def start(self) -> None:
        """The next life."""
        with self._site.moving:
            self._site.life += 1
            self._now = Served([self._site.link], self._log, *self._options, port=self._site.port)
        self._began = time.monotonic()
        self.memory.append([])
        self.starts.append(round(self._now.start_seconds, 2))
        self._site.up.set()

    def kill(self) -> None:
        """End this life in the middle of its work and begin the next one."""
        self._site.up.clear()
        self._now.kill()
        self.start()

    def stop(self) -> None:
        """End this life in order."""
        self._site.up.clear()
        if code := self._now.stop():
            self._site.tally.failure("stop", f"exit code {code}: {self._now.last_words()}")

    def end(self) -> None:
        """Leave no process behind."""
        if self._now.alive:
            self._now.kill()

    def sample(self) -> None:
        """What the process holds in memory now."""
        if self._now.alive:
            moment = time.monotonic() - self._began
            self.memory[-1].append((moment, self._now.resident_mb()))
        else:
            self._site.tally.failure("the process", f"it died: {self._now.last_words()}")
            self._site.stop.set()


def warm_up_s(seconds: float) -> float:
    """Of a life, in a soak of so many seconds."""
    return min(WARM_UP_S, seconds / 10)


def work(site: Site, actor: Actor) -> None:
    """Step by step until the soak ends."""
    while not site.stop.is_set():
        try:
            if actor.client.connected():
                actor.step()
            else:
                time.sleep(0.2)
        except Exception:
            site.tally.failure("a client", traceback.format_exc()[-500:])
            actor.client.close()


def soak(site: Site, lives: Lives, actors: list[Actor], seconds: float) -> None:
    """Half of the time with kills, half without."""
    threads = [threading.Thread(target=work, args=(site, actor)) for actor in actors]
    for thread in threads:
        thread.start()
    begin = time.monotonic()
    every = min(KILL_EVERY_S, seconds / 5)
    kill_at = begin + every
    quiet_at = begin + seconds / 2 + warm_up_s(seconds)
    try:
        while (now := time.monotonic()) < begin + seconds and not site.stop.wait(1.0):
            lives.sample()
            if now < quiet_at:
                site.tally.slowest_ms.clear()
            if kill_at < now < begin + seconds / 2:
                lives.kill()
                kill_at = time.monotonic() + every
    finally:
        site.stop.set()
        for thread in threads:
            thread.join()


def check(actors: list[Actor]) -> None:
    """Whether all that was acknowledged is there."""
    for actor in actors:
        if isinstance(actor, Reporter | Administrator):
            actor.client.close()  # a connection that rested may have been closed
            actor.check()


def cast(site: Site, good: list[Path], damaged: list[Path]) -> list[Actor]:
    """All who ask. The last items of the shop are those that administrators change."""
    own = list(site.base)[-ADMINISTRATORS * OWN :]
    return [
        *(Reader(site, seed) for seed in range(READERS)),
        *(Reporter(site, f"user-{n}", seed=10 + n) for n in range(REPORTERS)),
        *(
            Administrator(site, f"new-{n}", own[n * OWN : (n + 1) * OWN], seed=20 + n)
            for n in range(ADMINISTRATORS)
        ),
        Reloader(site, good, damaged, seed=30),
    ]


def report(site: Site, lives: Lives, actors: list[Actor], seconds: float) -> dict[str, Any]:
    """Figures, and a failure where memory grew."""
    quiet = lives.memory[-2]  # the last life is the look at the end
    found = growth(quiet, warm_up_s(seconds))
    if found is None or found["percent"] > GROWTH:
        site.tally.failure("memory", f"grew by more than {GROWTH:g} %: {found}")
    tally = site.tally
    events = [actor.events.total for actor in actors if isinstance(actor, Reporter)]
    return {
        "passed": not tally.failed,
        "minutes": seconds / 60,
        "events_in_redis": site.keeps_events,
        "kills": len(lives.memory) - 2,
        "lost_changes": tally.failed["lost changes"],
        "lost_events": tally.failed["lost events"],
        "events_held": sum(events),
        "requests": sum(tally.answered.values()),
        "answered": dict(tally.answered),
        "declared": dict(tally.declared),
        "failed": dict(tally.failed),
        "failures": tally.failures,
        "slowest_ms_without_kills": tally.slowest_ms,
        "start_seconds": lives.starts,
        "resident_mb_without_kills": found,
        "resident_mb_by_life": [[life[0][1], life[-1][1]] for life in lives.memory if life],
    }


def main() -> None:
    """The whole soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--redis", action="store_true", help="keep events in a redis-server")
    parser.add_argument("--log", type=Path, help="where the service logs; else it is thrown away")
    given = parser.parse_args()
    seconds = 60 * given.minutes
    with tempfile.TemporaryDirectory() as place, redis_or_not(Path(place), given.redis) as url:
        folder = Path(place)
        good, damaged = runs(folder)
        items = pq.read_table(good[0] / ITEMS, columns=["item", "title"])
        base = dict(zip(*(column.to_pylist() for column in items.columns), strict=True))
        site = Site(folder / "shop", base, free_port(), keeps_events=given.redis)
        site.point(good[0])
        options = ["--journal", str(folder / "journal"), *(["--redis", url] if url else [])]
        lives = Lives(site, given.log or folder / "log", options)
        actors = cast(site, good, damaged)
        try:
            soak(site, lives, actors, seconds)
            check(actors)
            lives.stop()
            lives.start()
            check(actors)
            lives.stop()
        finally:
            lives.end()
        found = report(site, lives, actors, seconds)
        emit("the service under everything at once", found, "soak.jsonl")
    sys.exit(0 if found["passed"] else 1)


@contextmanager
def redis_or_not(folder: Path, wanted: bool) -> Iterator[str | None]:
    """The address of a Redis server, where one is wanted."""
    if not wanted:
        yield None
        return
    with redis_server(folder / "redis") as url:
        yield url


if __name__ == "__main__":
    main()
