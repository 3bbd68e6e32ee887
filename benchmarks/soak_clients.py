"""Who asks in a soak: readers, reporters of events, administrators. Each goes step by step."""

import itertools
import random
import time
from pathlib import Path
from typing import Any

from soak_ledger import KINDS, Catalogue, Change, Events, Item
from soak_site import Client, Site

K = 10
PLAIN: list[dict[str, Any]] = [{}] * 6
USERS = 100
"""Whose events one reporter reports."""
OWN = 40
"""Items of training that an administrator changes, and as many new ones."""


class Reader:
    """Asks for lists, similar items and the catalogue."""

    def __init__(self, site: Site, seed: int):
        self._site, self.client = site, Client(site)
        self._random = random.Random(seed)
        self._ids = list(site.base)

    def step(self) -> None:
        """One question, and whether its answer makes sense."""
        kinds = (self._list, self._lists, self._similar, self._items, self._about)
        (ask,) = self._random.choices(kinds, (8, 2, 2, 2, 1))
        ask()

    def _history(self) -> list[str]:
        return self._random.sample(self._ids, self._random.randint(1, 30))

    def _conditions(self) -> dict[str, Any]:
        some: list[dict[str, Any]] = [
            {"filters": f"count > {self._random.randint(0, 60)}"},
            {"filters": f"title like '%{self._random.choice('abcdefgh')}%'"},
            {"exclude": self._random.sample(self._ids, 5)},
            {"diversity": 0.5},
            {"score": "probability"},
        ]
        return self._random.choice(PLAIN + some)

    def _list(self) -> None:
        history, more = self._history(), self._conditions()
        if not more and self._random.random() < 0.1:
            more = {"reasons": True}
        answer = self.client.post("/recommend", {"history": history, "k": K, **more})
        if answer is not None:
            self._look_at("/recommend", answer, history)

    def _lists(self) -> None:
        histories = [self._history() for _ in range(self._random.randint(1, 16))]
        body = {"histories": histories, "k": K, **self._conditions()}
        answer = self.client.post("/recommend/batch", body)
        if answer is None:
            return
        if len(answer["lists"]) != len(histories):
            self._site.tally.failure("/recommend/batch", f"{len(answer['lists'])} lists")
        for one, history in zip(answer["lists"], histories, strict=False):
            self._look_at("/recommend/batch", one, history)

    def _similar(self) -> None:
        item = self._random.choice(self._ids)
        answer = self.client.get("/similar", item=item, k=str(K))
        if answer is not None:
            self._look_at("/similar", answer, [item])

    def _items(self) -> None:
        words = self._random.choice(list(self._site.base.values())).split()[0]
        answer = self.client.get("/items", search=words, limit="20")
        if answer is not None and not 0 < len(answer["items"]) <= min(20, answer["total"]):
            self._site.tally.failure("/items", f"{words}: {answer['total']} items")

    def _about(self) -> None:
        self.client.get(self._random.choice(["/healthz", "/readyz", "/version"]))

    def _look_at(self, kind: str, answer: dict[str, Any], history: list[str]) -> None:
        found = [item["item"] for item in answer["items"]]
        if len(found) != K and not answer["short"]:
            self._site.tally.failure(kind, f"{len(found)} items and no reason: {answer}")
        if len(set(found)) != len(found) or set(found) & set(history):
            self._site.tally.failure(kind, f"repeats itself or the history {history}: {found}")


class Reporter:
    """Reports events of users, and sees to it that none of them is lost."""

    def __init__(self, site: Site, name: str, seed: int):
        self._site, self.client = site, Client(site)
        self._random = random.Random(seed)
        self._ids = list(site.base)
        self._users = [f"{name}-{number}" for number in range(USERS)]
        self._life = 0
        self.events = Events()

    def step(self) -> None:
        """Some events of a user; half of the time the user is shown a list."""
        user = self._random.choice(self._users)
        self.report(user, self._random.randint(1, 3))
        if self._random.random() < 0.5:
            answer = self.client.post("/recommend", {"user": user}, kind="/recommend by user")
            if answer is not None and len(answer["items"]) != K:
                self._site.tally.failure("/recommend by user", str(answer))

    def report(self, user: str, count: int) -> None:
        """So many events of a user, counted by the service as they must be."""
        events = [{"item": item} for item in self._random.sample(self._ids, count)]
        answer = self.client.post("/events", {"user": user, "events": events})
        if answer is None:
            self.events.unanswered(user, count)
            return
        if self.client.life != self._life and not self._site.keeps_events:
            self.events.forget()
        self._life = self.client.life
        told = answer["events"] + answer["unknown"]
        if complaint := self.events.wrong(user, answer["model_version"], count, told):
            self._site.tally.failure("lost events", complaint)

    def check(self) -> None:
        """One more event of every user."""
        for user in self._users:
            self.report(user, 1)


class Administrator:
    """Changes the catalogue, and sees to it that each change shows and none is lost."""

    def __init__(self, site: Site, name: str, own: list[str], seed: int):
        """Nobody else changes the items `own`; as many new ones come as well."""
        self._site, self.client = site, Client(site)
        self._random = random.Random(seed)
        items = {item: Item(known=True, title=site.base[item]) for item in own}
        new = {f"{name}-{number}": Item(known=False, title=None) for number in range(OWN)}
        self._all = [*items, *new]
        self._asked = next(item for item in site.base if item not in items)
        self._checked_life = 0
        self.catalogue = Catalogue({**items, **new})
        self._steps = 0

    def step(self) -> None:
        """A change, and whether it shows; before that all of it where another process serves."""
        if self.client.life != self._checked_life and not self.check():
            return
        self._checked_life = self.client.life
        self._steps += 1
        if self._steps % 100 == 0:
            self.client.post("/items/compact", {})
            self.check()
        change = self._change()
        path, body = self._request(change)
        answer = self.client.post(path, body, kind=f"{path}, {change.kind}")
        if answer is None:
            self.catalogue.unanswered(change)
        else:
            self.catalogue.acknowledged(change)
            self.check(change.ids)
        time.sleep(self._random.random() / 20)

    def check(self, ids: tuple[str, ...] = ()) -> bool:
        """See to it that these items, or all, are shown as was acknowledged; False if not told."""
        asked = list(ids or self._all)
        body = {"history": [self._asked], "allow": asked, "k": len(asked), "exclude_seen": False}
        answer = self.client.post("/recommend", body, kind="what is shown")
        if answer is None:
            return False
        shown = {item["item"]: item["title"] for item in answer["items"]}
        for complaint in self.catalogue.wrong(asked, shown):
            self._site.tally.failure("lost changes", complaint)
        return True

    def _change(self) -> Change:
        ids = tuple(self._random.sample(self._all, self._random.randint(1, 4)))
        (kind,) = self._random.choices(KINDS, (4, 2, 2, 2))
        title = self._random.choice(list(self._site.base.values()))
        return Change(kind, ids, f"{title} no {self._steps}" if kind == "upsert" else "")

    def _request(self, change: Change) -> tuple[str, dict[str, Any]]:
        if change.kind == "upsert":
            rows = [{"item": item, "title": change.title} for item in change.ids]
            return "/items", {"items": rows}
        if change.kind == "remove":
            return "/items/remove", {"ids": list(change.ids)}
        available = change.kind == "available"
        return "/items/availability", {"ids": list(change.ids), "available": available}


class Reloader:
    """Has other runs taken over, and damaged ones refused."""

    def __init__(self, site: Site, good: list[Path], damaged: list[Path], seed: int):
        """`site.link` leads to the first of the good runs."""
        self._site, self.client = site, Client(site)
        self._random = random.Random(seed)
        self._good, self._damaged = itertools.cycle(good), itertools.cycle(damaged)
        self._steps = 0
        self._now = good[0]
        self._versions: dict[Path, str] = {}
        self._serving: str | None = None

    def step(self) -> None:
        """Another run, every third time a damaged one; then a pause."""
        self._steps += 1
        with self._site.moving:
            if self._steps % 3 == 0:
                self._refused(next(self._damaged))
            else:
                self._taken_over(next(self._good))
        self.client.close()  # a connection that rests is closed by the service
        self._site.stop.wait(self._random.uniform(1, 6))

    def _taken_over(self, run: Path) -> None:
        self._site.point(run)
        self._now, self._serving = run, None
        status, answer = self.client.reload()
        if answer is None:
            return
        self._serving = self._versions.setdefault(run, answer["model_version"])
        if (status, answer["took_over"], answer["model_version"]) != (200, True, self._serving):
            self._site.tally.failure("/reload", f"{run.name}: {status} {answer}")

    def _refused(self, run: Path) -> None:
        self._site.point(run)
        try:
            status, answer = self.client.reload()
        finally:
            self._site.point(self._now)
        if answer is None:
            return
        if status != 409 or answer["took_over"] or not answer["reason"]:
            self._site.tally.failure("/reload", f"{run.name} was not refused: {status} {answer}")
        elif self._serving not in (None, answer["model_version"]):
            self._site.tally.failure("/reload", f"the refused {run.name} changed what serves")
        else:
            self._site.tally.answer("/reload of a damaged run", 0.0)
