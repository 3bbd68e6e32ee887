"""Batcher: questions of one moment, worked out together."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from recsys.retrieval.answers import Score
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.snapshot import Recommendations

LARGEST = 32
"""Questions of one batch; more would keep the first of them waiting for the last."""


@dataclass(frozen=True)
class Conditions:
    """What may come back. Questions under equal conditions are worked out together."""

    k: int
    """Length of the list."""
    exclude: tuple[Any, ...]
    """Raw ids that must not come back."""
    exclude_seen: bool
    """Whether items of the history must not either."""
    allow: tuple[Any, ...] | None
    """Raw ids that alone may come back."""
    filters: str | None
    """A condition over the catalogue's columns."""
    diversity: float
    """Weight of being unlike the others, in [0, 1]."""
    score: Score
    """What scores are."""

    def as_arguments(self) -> dict[str, Any]:
        """For the methods of a retriever that recommend."""
        return {
            "k": self.k,
            "exclude": self.exclude,
            "exclude_seen": self.exclude_seen,
            "allow": self.allow,
            "filters": self.filters,
            "diversity": self.diversity,
            "score": self.score,
        }


@dataclass(frozen=True)
class _Question:
    history: list[Any]
    times: list[int] | None
    conditions: Conditions
    answer: "asyncio.Future[Recommendations]"

    @property
    def kind(self) -> tuple[Conditions, bool]:
        """Questions of one kind fit into one batch."""
        return self.conditions, self.times is not None


class Batcher:
    """While one batch is worked out in its thread, the questions that come in make the next one.

    A question that comes alone is worked out at once. Belongs to one event loop.
    """

    def __init__(self, retriever: Retriever, sized: Callable[[int], None]):
        """`sized` is told the size of each batch."""
        self._retriever = retriever
        self._sized = sized
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recsys-batch")
        self._waiting: deque[_Question] = deque()
        self._busy = False

    async def ask(
        self, history: list[Any], times: list[int] | None, conditions: Conditions
    ) -> Recommendations:
        """The k best items after a history, as by `Retriever.recommend`."""
        answer: asyncio.Future[Recommendations] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Question(history, times, conditions, answer))
        self._start()
        return await answer

    def close(self) -> None:
        """Wait for the batch at work."""
        self._thread.shutdown(wait=True)

    def _start(self) -> None:
        """Give the thread its next batch, if it has none and there is one."""
        group = [] if self._busy else self._next_group()
        if not group:
            return
        self._busy = True
        self._sized(len(group))
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._worked_out, group)
        work.add_done_callback(lambda done: self._finish(group, done))

    def _next_group(self) -> list[_Question]:
        """Of one kind, the oldest first; those whose asker has gone are dropped."""
        group: list[_Question] = []
        others: list[_Question] = []
        while self._waiting and len(group) < LARGEST:
            question = self._waiting.popleft()
            if question.answer.done():
                continue
            fits = not group or question.kind == group[0].kind
            (group if fits else others).append(question)
        self._waiting.extendleft(reversed(others))
        return group

    def _worked_out(self, group: list[_Question]) -> list[Recommendations]:
        times = [question.times for question in group if question.times is not None]
        return self._retriever.recommend_batch(
            [question.history for question in group],
            times=times or None,
            **group[0].conditions.as_arguments(),
        )

    def _finish(
        self, group: list[_Question], done: "asyncio.Future[list[Recommendations]]"
    ) -> None:
        self._busy = False
        error = done.exception()
        for place, question in enumerate(group):
            if question.answer.done():
                continue
            if error is None:
                question.answer.set_result(done.result()[place])
            else:
                question.answer.set_exception(error)
        self._start()
