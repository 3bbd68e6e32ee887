"""Where a service keeps the states of its live users, as bytes: in the process, or in Redis.

A worker reads a state, goes on from it and puts it back with `swap`, which puts nothing where
another worker was faster. So two workers never lose an event; `changed` is that loop.
"""

import contextlib
import hashlib
import itertools
import re
import secrets
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from recsys.errors import InputError, WorkError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.1
"""How long `changed` waits at most after its first lost race, and after many."""
LONGEST_TTL_S = 1e10
"""Some 300 years; Redis counts milliseconds in 64 bits."""
TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
"""What may follow the `?` of a rediss:// address. Others could change timeouts or the bytes."""

# One hash a user, so that forgetting a user is one DEL. A put in one model renews the whole hash;
# a model that is served no more would live as long as its user does, so the first put of a new
# model drops what has had no put for as long as the hash may live.
SWAP = """
local key, model, expected, revision, data, ttl_ms = KEYS[1], unpack(ARGV)
if (redis.call('HGET', key, 'revision ' .. model) or '') ~= expected then return 0 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if expected == '' then
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local other = string.match(field, '^put (.*)$')
    if other and now_ms - redis.call('HGET', key, field) > tonumber(ttl_ms) then
      redis.call('HDEL', key, 'revision ' .. other, 'data ' .. other, field)
    end
  end
end
redis.call('HSET', key, 'revision ' .. model, revision, 'data ' .. model, data,
           'put ' .. model, string.format('%.0f', now_ms))
redis.call('PEXPIRE', key, ttl_ms)
return 1
"""


@dataclass(frozen=True)
class Stored:
    """A state as it lies in a store."""

    data: bytes
    """What was put."""
    revision: int
    """Grows with each put; what `swap` compares. No revision comes back after a removal."""


class StateStore(Protocol):
    """States by user and model (`recsys.retrieval.state.fingerprint`). Threads may share it.

    All of it raises WorkError where the store is away.
    """

    def get(self, user: str, model: str) -> Stored | None:
        """What is stored, None where nothing is."""
        ...

    def swap(self, user: str, model: str, data: bytes, revision: int | None) -> bool:
        """Put data if the stored revision is still `revision` (None: nothing stored yet).

        False where it was not put, and then nothing has changed. After a WorkError it may have
        been put or not.
        """
        ...

    def remove(self, user: str) -> None:
        """Forget the user in every model."""
        ...


def changed(
    store: StateStore,
    user: str,
    model: str,
    change: Callable[[bytes | None], bytes],
    tries: int = 32,
) -> bytes:
    """Read, change and swap until no other worker came between; the bytes that were put.

    `change` takes the stored bytes, None where there are none. It is called once a try, so it must
    have no effect but its result. WorkError after `tries` tries, and then nothing was put.
    """
    if tries < 1:
        raise InputError(f"tries must be at least 1, got {tries}")
    pause_s = FIRST_PAUSE_S
    for attempt in range(tries):
        if attempt:
            # Workers that wait equally long would meet again. Not from the global generator: a
            # service that seeds it would have all its workers wait alike.
            time.sleep(pause_s * secrets.SystemRandom().random())
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        stored = store.get(user, model)
        data = change(stored.data if stored else None)
        if store.swap(user, model, data, stored.revision if stored else None):
            return data
    raise WorkError(
        f"other workers changed the state of one user during each of {tries} tries: send the events"
        " of a user to one worker, or allow more tries"
    )


class MemoryStore:
    """States in this process; the least recently used goes first. For one worker, and for tests."""

    def __init__(self, capacity: int = 100_000):
        """`capacity` in states; a user has one in each model."""
        if capacity < 1:
            raise InputError(f"the capacity of a store must be at least 1, got {capacity}")
        self.capacity = capacity
        self._states: OrderedDict[tuple[str, str], Stored] = OrderedDict()
        self._models: defaultdict[str, set[str]] = defaultdict(set)
        # One count for all states: a revision of a state that went never comes back.
        self._revisions = itertools.count(1)
        self._lock = threading.Lock()

    def get(self, user: str, model: str) -> Stored | None:
        """What is stored, None where nothing is. The state counts as used."""
        with self._lock:
            stored = self._states.get((user, model))
            if stored is not None:
                self._states.move_to_end((user, model))
            return stored

    def swap(self, user: str, model: str, data: bytes, revision: int | None) -> bool:
        """Put data if the stored revision is still `revision` (None: nothing stored yet)."""
        with self._lock:
            stored = self._states.get((user, model))
            if (stored.revision if stored else None) != revision:
                return False
            self._states[user, model] = Stored(data, next(self._revisions))
            self._states.move_to_end((user, model))
            self._models[user].add(model)
            if len(self._states) > self.capacity:
                (oldest, its_model), _ = self._states.popitem(last=False)
                self._models[oldest].discard(its_model)
                if not self._models[oldest]:
                    del self._models[oldest]
            return True

    def remove(self, user: str) -> None:
        """Forget the user in every model."""
        with self._lock:
            for model in self._models.pop(user, ()):
                del self._states[user, model]


class RedisStore:
    """States in a Redis server (5 or later) that all workers share; `close` it in the end.

    A user who has had no put for `ttl_s` is forgotten. The state of a model that is served no more
    goes too, with the first put of a newer model after that time.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        prefix: str = "recsys",
        ttl_s: float = 30 * 24 * 3600,
        timeout_s: float = 1.0,
    ):
        """Connects at the first use.

        Args:
            url: redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// for TLS (with `?ssl_ca_certs=`,
                `ssl_certfile=`, `ssl_keyfile=`).
            prefix: first part of all keys, for servers that others use too.
            ttl_s: seconds after which a user without a put is forgotten, at least 0.001.
            timeout_s: seconds to wait for a connection, and for each answer.
        """
        if not 0.001 <= ttl_s <= LONGEST_TTL_S:
            raise InputError(f"ttl_s must lie in [0.001, {LONGEST_TTL_S:g}], got {ttl_s}")
        if not 0 < timeout_s < float("inf"):
            raise InputError(f"timeout_s must be positive, got {timeout_s}")
        self._where = _address(url)
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise InputError(
                "states in Redis need the package redis: pip install 'recsys[serve]'"
            ) from None
        self._prefix = prefix
        self._ttl_ms = round(1000 * ttl_s)
        self._timeout_s = timeout_s
        # A swap that is sent again after a lost answer would find its own revision, be refused and
        # count its event twice.
        self._client: Any = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._swap: Any = self._client.register_script(SWAP)

    def get(self, user: str, model: str) -> Stored | None:
        """What is stored, None where nothing is."""
        with self._failures():
            revision, data = self._client.hmget(
                self._key(user), [b"revision " + _utf8(model), b"data " + _utf8(model)]
            )
        return None if revision is None else Stored(data, int(revision))

    def swap(self, user: str, model: str, data: bytes, revision: int | None) -> bool:
        """Put data if the stored revision is still `revision` (None: nothing stored yet).

        Atomic, and renews the time that the user is kept.
        """
        # A state that comes after a removal starts elsewhere, so that a swap from before the
        # removal is refused. 62 bits by chance need no clock and nothing that outlives the user.
        following = secrets.randbits(62) if revision is None else revision + 1
        expected = "" if revision is None else str(revision)
        with self._failures():
            args = (_utf8(model), expected, str(following), data, self._ttl_ms)
            return bool(self._swap([self._key(user)], args))

    def remove(self, user: str) -> None:
        """Forget the user in every model: one key, however many users there are."""
        with self._failures():
            self._client.delete(self._key(user))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _key(self, user: str) -> bytes:
        """A digest: of one length, without the signs that mean something in keys (colons, braces of
        a cluster, line ends), and no list of keys shows who the users are."""
        return _utf8(f"{self._prefix}:") + hashlib.sha256(_utf8(user)).hexdigest().encode()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """WorkError with the host and the port where the server fails.

        A server's own words stay out: old servers repeat the command that they did not know, and a
        log-in holds the password.
        """
        from redis import exceptions

        try:
            yield
        except exceptions.RedisError as error:
            refusals = (exceptions.AuthenticationError, exceptions.NoPermissionError)
            cause = error.__cause__ or error.__context__
            if isinstance(error, refusals):
                reason = "refuses the user or the password of its address"
            elif isinstance(error, exceptions.TimeoutError):
                reason = f"did not answer within {self._timeout_s:g} s"
            elif isinstance(cause, OSError) and cause.strerror:
                reason = f"cannot be reached: {cause.strerror}"
            else:
                code = re.match(r"[A-Z]+\b", str(error))
                reason = f"failed: {type(error).__name__}{f' {code[0]}' if code else ''}"
        else:
            return
        raise WorkError(f"the Redis server at {self._where} {reason}")


def _utf8(text: str) -> bytes:
    """Every text has its own bytes, half a surrogate pair too."""
    return text.encode("utf-8", "surrogatepass")


def _address(url: str) -> str:
    """HOST:PORT of the address of a Redis server, for messages.

    InputError, which never shows the address, as it may hold a password.
    """
    refused = InputError(
        "the address of a Redis server is redis://[USER:PASSWORD@]HOST[:PORT][/DB], or rediss://"
        f" with {', '.join(sorted(TLS_OPTIONS))} behind a ?; in a password, write other signs than"
        " letters and digits as %XX"
    )
    try:
        parts = urlsplit(url)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        raise refused from None
    allowed = {"redis": set(), "rediss": TLS_OPTIONS}.get(parts.scheme)
    # An unescaped / ? or # ends a password early, and what stands before it looks like a port.
    whole = host and not parts.fragment and re.fullmatch(r"/?|/\d+", parts.path)
    if allowed is None or not whole or not {name for name, _ in options} <= allowed:
        raise refused
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
