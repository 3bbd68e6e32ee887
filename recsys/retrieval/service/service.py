"""Service: the models that are served, the states of their users, and the threads they work in."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from recsys.errors import InputError
from recsys.retrieval.reload import Reload, Watch
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.service.batcher import Batcher, Conditions
from recsys.retrieval.service.config import ServiceConfig
from recsys.retrieval.service.keys import Keys, read_keys
from recsys.retrieval.service.logs import say
from recsys.retrieval.service.metrics import Metrics, Serving
from recsys.retrieval.snapshot import Recommendations
from recsys.retrieval.stores import MemoryStore, RedisStore, StateStore, changed
from recsys.retrieval.user_state import UnknownItems, UserState

T = TypeVar("T")
THREADS = 4
"""For what is not gathered into batches and may take long."""


@dataclass(frozen=True)
class Served:
    """A run that is served."""

    name: str
    """Of its folder."""
    place: Path
    """Where a newer run may appear."""
    retriever: Retriever
    """What answers."""
    batcher: Batcher
    """What gathers questions."""


class Service:
    """Everything that lives as long as the service does; `close` it in the end."""

    def __init__(
        self,
        models: dict[str, Served],
        store: StateStore,
        config: ServiceConfig,
        metrics: Metrics,
        keys: Keys | None,
    ):
        """`Service.open` is the way to one. The first model is the default."""
        self.models = models
        self.store = store
        self.config = config
        self.metrics = metrics
        self.keys = keys
        self.default = next(iter(models.values()))
        self.stopping = False
        self.waiting = 0
        self._changing = asyncio.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="recsys-service")
        # Steps of a model are many short calls, which threads would take from each other's hands:
        # eight users at a time were answered 592 times a second by four threads, 729 times by one.
        waits = isinstance(store, RedisStore)
        self._state_threads = ThreadPoolExecutor(THREADS if waits else 1, "recsys-states")
        self._watches: list[Watch] = []
        metrics.registry.register(Serving(self.versions, lambda: self.waiting))

    @classmethod
    def open(cls, runs: Sequence[Path], config: ServiceConfig) -> "Service":
        """Load all runs. InputError where one cannot be served."""
        names = [run.absolute().name for run in runs]
        if len(set(names)) != len(names):
            raise InputError(f"each run is served under its folder's name: {', '.join(names)}")
        keys = None if config.keys is None else read_keys(config.keys)
        store: StateStore = MemoryStore(config.max_users)
        if config.redis is not None:
            store = RedisStore(config.redis)
        metrics = Metrics()
        models: dict[str, Served] = {}
        try:
            for name, run in zip(names, runs, strict=True):
                journal = None if config.journal is None else config.journal / f"{name}.journal"
                retriever = Retriever.load(run, threads=config.threads, journal=journal)
                _warm(retriever)
                batcher = Batcher(retriever, partial(metrics.batch, name))
                models[name] = Served(name, run, retriever, batcher)
        except BaseException:
            for served in models.values():
                served.retriever.close()
            raise
        return cls(models, store, config, metrics, keys)

    def watch(self) -> None:
        """Look for newer runs from now on, if that is asked for."""
        if self.config.watch_s is None:
            return
        for served in self.models.values():

            def reload(run: Path, served: Served = served) -> Reload:
                return self.reload(served)

            known = served.retriever.mark
            self._watches.append(Watch(served.place, self.config.watch_s, reload, known))

    def close(self) -> None:
        """End what is at work, then let others have the journals."""
        for watch in self._watches:
            watch.stop()
        self._threads.shutdown(wait=True)
        self._state_threads.shutdown(wait=True)
        for served in self.models.values():
            served.batcher.close()
            served.retriever.close()
        if isinstance(self.store, RedisStore):
            self.store.close()

    def versions(self) -> dict[str, dict[str, Any]]:
        """What serves, by name."""
        return {name: served.retriever.version() for name, served in self.models.items()}

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What a function returns that may take its time."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def with_states(self, work: Callable[[], T]) -> T:
        """What a function returns that reads or changes the state of a user."""
        return await asyncio.get_running_loop().run_in_executor(self._state_threads, work)

    async def change(
        self, what: str, change: Callable[[Retriever], dict[str, Any]]
    ) -> tuple[dict[str, dict[str, Any]], str | None]:
        """(what each model makes of a change of the catalogue, why some refused it, if they did).

        Changes are made one after another, in the same order in every model.
        """

        def made() -> tuple[dict[str, dict[str, Any]], str | None]:
            results: dict[str, dict[str, Any]] = {}
            refusals = []
            for name, served in self.models.items():
                try:
                    results[name] = change(served.retriever)
                except InputError as error:
                    results[name] = {"error": str(error)}
                    refusals.append(f"{name}: {error}")
            return results, "; ".join(refusals) or None

        async with self._changing:
            results, refused = await self.in_thread(made)
        say("catalogue", change=what, models=results)
        return results, refused

    def reload(self, served: Served) -> Reload:
        """Take over the run that lies in a place now."""
        result = served.retriever.reload(served.place)
        self.metrics.reload(served.name, result.took_over)
        say(
            "reload",
            model=served.name,
            took_over=result.took_over,
            reason=result.reason,
            model_version=result.model_version,
            dropped=result.dropped,
            seconds=result.seconds,
        )
        return result

    def recommend_to(self, served: Served, user: str, conditions: Conditions) -> Recommendations:
        """The list for a user whose events were reported, or by popularity for a new one."""
        retriever = served.retriever

        def asked(model: str) -> Recommendations:
            stored = self.store.get(user, model)
            state = _state(retriever, None if stored is None else stored.data)
            return retriever.recommend_from_state(state, **conditions.as_arguments())

        return _in_one_model(retriever, asked)

    def take(
        self, served: Served, user: str, events: Sequence[tuple[Any, int | None]]
    ) -> UserState:
        """The state of a user after more events, which is stored; ids that are not known count."""
        retriever = served.retriever

        def taken(model: str) -> tuple[UserState, int]:
            after: list[tuple[UserState, int]] = []

            def change(data: bytes | None) -> bytes:
                state = _state(retriever, data)
                before = state.unknown
                for item, time in events:
                    state = retriever.update(state, item, time=time)
                if state.fingerprint != model:
                    raise InputError("another model took over")
                after.append((state, state.unknown - before))
                return state.to_bytes()

            changed(self.store, user, model, change)
            return after[-1]  # of the try that was stored

        state, unknown = _in_one_model(retriever, taken)
        self.metrics.unknown(served.name, unknown)
        return state


def _state(retriever: Retriever, data: bytes | None) -> UserState:
    """What is stored of a user, or the state before the first event."""
    if data is not None:
        try:
            return retriever.state_from_bytes(data)
        except UnknownItems as error:
            say("state", logging.WARNING, begun_anew=str(error))
    return retriever.init_state()


def _in_one_model(retriever: Retriever, work: Callable[[str], T]) -> T:
    """What is worked out for the fingerprint of the model that serves, from its beginning to its
    end; begun anew where another model took over meanwhile."""
    while True:
        model = retriever.fingerprint
        try:
            return work(model)
        except InputError:
            if retriever.fingerprint == model:
                raise


def _warm(retriever: Retriever) -> None:
    """Ask once, so that no user waits for what Python loads at the first question."""
    some = retriever.vocab.raw_ids[:1].to_pylist()
    retriever.recommend(some, times=[0] * len(some), filters="item is not null")
    retriever.find_items(limit=1)
