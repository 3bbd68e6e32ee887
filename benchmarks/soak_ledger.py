"""What a service has acknowledged, and what it may show therefore. No network, no clock."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

Kind = Literal["upsert", "remove", "available", "unavailable"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Item:
    """How an item stands in a catalogue."""

    known: bool
    """Whether the catalogue has heard of it."""
    title: str | None
    """Its words."""
    removed: bool = False
    """Whether it was taken out for good."""
    available: bool = True
    """Whether it is in stock."""

    @property
    def shown(self) -> str | None:
        """The title under which it may be recommended, None where it may not."""
        return self.title if self.known and self.available and not self.removed else None


@dataclass(frozen=True)
class Change:
    """One change of a catalogue, whole or not at all."""

    kind: Kind
    """What is done."""
    ids: tuple[str, ...]
    """To which items."""
    title: str = ""
    """The words of an upsert."""

    def after(self, item: Item) -> Item:
        """How one of its items stands once it is made."""
        if self.kind == "upsert":
            return replace(item, known=True, title=self.title, removed=False)
        if not item.known:
            return item
        if self.kind == "remove":
            return replace(item, removed=True)
        return replace(item, available=self.kind == "available")


class Catalogue:
    """How items may stand: one way each, or two behind a change that was not answered.

    Its changes are made one after the other by one client; others change other items.
    """

    def __init__(self, items: dict[str, Item]):
        self._possible = {name: {item} for name, item in items.items()}

    def acknowledged(self, change: Change) -> None:
        """The service said that a change is made."""
        for name in change.ids:
            self._possible[name] = {change.after(item) for item in self._possible[name]}

    def unanswered(self, change: Change) -> None:
        """The change was made or not."""
        for name in change.ids:
            self._possible[name] |= {change.after(item) for item in self._possible[name]}

    def wrong(self, asked: Iterable[str], shown: dict[str, str]) -> list[str]:
        """What is not as it must be where `shown` came back, titles by id, of the items asked for.

        What is known of items that were changed without an answer becomes certain with it.
        """
        found = []
        for name in asked:
            title = shown.get(name)
            fitting = {item for item in self._possible[name] if item.shown == title}
            if not fitting:
                wanted = sorted({str(item.shown) for item in self._possible[name]})
                found.append(f"{name} is shown as {title}, not as {' or '.join(wanted)}")
            self._possible[name] = fitting or self._possible[name]
        return found


@dataclass
class _Count:
    events: int = 0
    """Of the last answer."""
    unanswered: int = 0
    """Of the user until then; no later answer holds more of them than came since."""


@dataclass
class Events:
    """How many events a service must have of each user, in each model that served."""

    _counts: dict[tuple[str, str], _Count] = field(default_factory=dict)
    _unanswered: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def total(self) -> int:
        """Events that were acknowledged, or turned out to be stored."""
        return sum(count.events for count in self._counts.values())

    def unanswered(self, user: str, events: int) -> None:
        """Events that were stored or not, in whichever model."""
        self._unanswered[user] += events

    def wrong(self, user: str, model: str, events: int, answer: int) -> str | None:
        """What is wrong where `answer` events are counted once `events` more are acknowledged."""
        before = self._counts.get((user, model), _Count())
        least = before.events + events
        most = least + self._unanswered[user] - before.unanswered
        self._counts[user, model] = _Count(answer, self._unanswered[user])
        if least <= answer <= most:
            return None
        wanted = f"{least}" if least == most else f"{least} to {most}"
        return f"{answer} events of {user} in {model}, not {wanted}"

    def forget(self) -> None:
        """The service kept nothing."""
        self._counts.clear()
        self._unanswered.clear()


def growth(samples: Sequence[tuple[float, float]], warm_up_s: float) -> dict[str, float] | None:
    """Mean memory of the first and of the last fifth of a life behind its warm-up, and the percent
    between them; `samples` are (seconds, MB). None where there are fewer than five."""
    steady = [mb for second, mb in samples if second >= warm_up_s]
    part = len(steady) // 5
    if not part:
        return None
    first, last = sum(steady[:part]) / part, sum(steady[-part:]) / part
    return {
        "first_mb": round(first, 1),
        "last_mb": round(last, 1),
        "percent": round(100 * (last / first - 1), 2),
    }
