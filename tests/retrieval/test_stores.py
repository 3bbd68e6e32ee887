"""Stores of states: what both kinds promise, and what Redis does when its server does not."""

import contextlib
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from recsys.errors import InputError, WorkError
from recsys.retrieval.stores import MemoryStore, RedisStore, StateStore, Stored, changed

PASSWORD = "open-sesame"
ODD = [
    "",
    " ",
    "7",
    "a:b",
    "a",
    "b",
    "{a}b",
    "*",
    "?",
    "\n\0",
    "ü",
    "u\u0308",
    "\ud800",
    "x" * 100_000,
]


@dataclass(frozen=True)
class Server:
    """A redis-server of the tests' own."""

    port: int
    process: subprocess.Popen[bytes]

    def url(self, password: str = PASSWORD) -> str:
        return f"redis://:{password}@127.0.0.1:{self.port}/0"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(folder: Path, port: int) -> Iterator[Server]:
    """A server that keeps nothing on disk, up when the block starts and down after it."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server program is installed")
    options = f"--port {port} --bind 127.0.0.1 --appendonly no --requirepass {PASSWORD}".split()
    process = subprocess.Popen(
        [program, *options, "--save", "", "--dir", str(folder)], stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, "redis-server did not start"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline, "redis-server does not listen"
            time.sleep(0.02)
        yield Server(port, process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("redis", reason="the extra `serve` is not installed")
    with running(tmp_path_factory.mktemp("redis"), free_port()) as server:
        yield server


@pytest.fixture
def in_redis(server: Server, request: pytest.FixtureRequest) -> Iterator[RedisStore]:
    """A store of this test alone; ten seconds, as the machine may be busy."""
    store = RedisStore(server.url(), prefix=request.node.name, timeout_s=10)
    with contextlib.closing(store):
        yield store


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> StateStore:
    return MemoryStore() if request.param == "memory" else request.getfixturevalue("in_redis")


def adding(event: str) -> Callable[[bytes | None], bytes]:
    return lambda data: (data or b"") + event.encode() + b"\n"


def put(store: StateStore, user: str, model: str, data: bytes) -> int:
    """The revision after a put that must succeed."""
    before = store.get(user, model)
    assert store.swap(user, model, data, before and before.revision)
    after = store.get(user, model)
    assert after is not None
    return after.revision


def data_of(store: StateStore, user: str, model: str) -> bytes | None:
    stored = store.get(user, model)
    return stored and stored.data


def test_what_is_put_comes_back_byte_for_byte(store):
    assert store.get("ada", "m") is None
    data = bytes(range(256)) * 300
    assert store.swap("ada", "m", data, None)
    assert store.get("ada", "m").data == data
    put(store, "ada", "m", b"")
    assert store.get("ada", "m").data == b""


def test_revisions_grow_with_each_put(store):
    revisions = [put(store, "ada", "m", b"%d" % i) for i in range(5)]
    assert sorted(set(revisions)) == revisions


def test_a_swap_with_another_revision_puts_nothing(store):
    first = put(store, "ada", "m", b"first")
    second = put(store, "ada", "m", b"second")
    for revision in (first, second + 1, 0, None):
        assert not store.swap("ada", "m", b"late", revision)
        assert store.get("ada", "m") == Stored(b"second", second)
    assert not store.swap("bob", "m", b"late", second)
    assert store.get("bob", "m") is None


def test_the_state_of_another_model_is_not_seen(store):
    models = ["m", "m put m", "data m", "m:n", "ü\n"]
    for model in models:
        assert store.get("ada", model) is None
        put(store, "ada", model, model.encode())
    assert [data_of(store, "ada", model) for model in models] == [m.encode() for m in models]


def test_remove_forgets_a_user_in_every_model_and_nobody_else(store):
    for user in ("ada", "bob"):
        for model in ("m", "n"):
            put(store, user, model, b"kept")
    store.remove("ada")
    store.remove("nobody")
    assert [data_of(store, "ada", model) for model in ("m", "n")] == [None, None]
    assert [data_of(store, "bob", model) for model in ("m", "n")] == [b"kept", b"kept"]


def test_a_swap_from_before_a_removal_is_refused_after_it(store):
    old = [put(store, "ada", "m", b"%d" % i) for i in range(3)]
    store.remove("ada")
    for revision in old:
        assert not store.swap("ada", "m", b"late", revision)
    for _ in old:
        put(store, "ada", "m", b"new")
        for revision in old:
            assert not store.swap("ada", "m", b"late", revision)
    assert data_of(store, "ada", "m") == b"new"


def test_users_of_any_name_are_kept_apart(store):
    for i, user in enumerate(ODD):
        assert store.get(user, "m") is None
        put(store, user, "m", b"%d" % i)
    store.remove("a")
    assert [data_of(store, user, "m") for user in ODD] == [
        None if user == "a" else b"%d" % i for i, user in enumerate(ODD)
    ]


def test_eight_threads_lose_no_event(store):
    def work(worker: int) -> None:
        for event in range(50):
            changed(store, "ada", "m", adding(f"{worker}.{event}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    events = store.get("ada", "m").data.decode().split()
    assert sorted(events) == sorted(f"{w}.{e}" for w in range(8) for e in range(50))
    for worker in range(8):
        mine = [event for event in events if event.startswith(f"{worker}.")]
        assert mine == [f"{worker}.{e}" for e in range(50)]


def test_changed_goes_on_from_what_another_worker_put(store):
    seen = []

    def change(data: bytes | None) -> bytes:
        seen.append(data)
        if len(seen) < 3:
            put(store, "ada", "m", b"theirs %d" % len(seen))
        return (data or b"") + b", ours"

    assert changed(store, "ada", "m", change) == b"theirs 2, ours"
    assert seen == [None, b"theirs 1", b"theirs 2"]
    assert data_of(store, "ada", "m") == b"theirs 2, ours"


def test_changed_gives_up_after_its_tries_and_puts_nothing(store):
    calls = []

    def change(data: bytes | None) -> bytes:
        calls.append(data)
        put(store, "ada", "m", b"theirs")
        return b"ours"

    with pytest.raises(WorkError, match="each of 3 tries"):
        changed(store, "ada", "m", change, tries=3)
    assert len(calls) == 3
    assert data_of(store, "ada", "m") == b"theirs"
    with pytest.raises(InputError, match="tries must be at least 1, got 0"):
        changed(store, "ada", "m", change, tries=0)


def test_the_least_recently_used_state_goes_first():
    store = MemoryStore(capacity=3)
    for user in ("ada", "bob", "cyd"):
        put(store, user, "m", b"kept")
    revision = store.get("ada", "m").revision
    assert store.get("cyd", "m")
    assert store.get("bob", "m")
    assert store.swap("ada", "m", b"used", revision)
    put(store, "dan", "m", b"new")
    assert [u for u in ("ada", "bob", "cyd", "dan") if store.get(u, "m")] == ["ada", "bob", "dan"]
    put(store, "bob", "n", b"a second model counts too")
    assert store.get("ada", "m") is None
    store.remove("ada")
    store.remove("dan")
    assert [u for u in ("ada", "bob", "cyd", "dan") if store.get(u, "m")] == ["bob"]
    assert store.get("bob", "n")


def test_a_swap_from_before_a_state_was_dropped_is_refused():
    store = MemoryStore(capacity=1)
    old = put(store, "ada", "m", b"old")
    put(store, "bob", "m", b"")
    put(store, "ada", "m", b"new")
    assert not store.swap("ada", "m", b"late", old)


ADD_EVENTS = """
import contextlib, sys, time
from recsys.retrieval.stores import RedisStore, changed
url, name = sys.argv[1:]
with contextlib.closing(RedisStore(url, prefix="processes", timeout_s=10)) as store:
    add = lambda user, event: changed(store, user, "m", lambda d: (d or b"") + event + b"\\n")
    add("ready", name.encode())
    deadline = time.monotonic() + 60
    while store.get("ready", "m").data.count(b"\\n") < 2:
        assert time.monotonic() < deadline, "the other process did not come"
    for event in range(200):
        add("ada", f"{name}.{event}".encode())
        time.sleep(0.002)  # longer in all than the loser of a race waits at most
"""


def test_two_processes_lose_no_event(server):
    processes = [
        subprocess.Popen([sys.executable, "-c", ADD_EVENTS, server.url(), name]) for name in "pq"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    with contextlib.closing(RedisStore(server.url(), prefix="processes", timeout_s=10)) as store:
        events = data_of(store, "ada", "m").decode().split()
    assert sorted(events) == sorted(f"{name}.{e}" for name in "pq" for e in range(200))
    # They did meet: neither was done before the other began.
    assert {event[0] for event in events[:200]} == {"p", "q"}


def wait_until_gone(store: StateStore, user: str, model: str) -> None:
    deadline = time.monotonic() + 20
    while store.get(user, model) is not None:
        assert time.monotonic() < deadline, "the state stays"
        time.sleep(0.02)


def test_a_user_without_a_put_is_forgotten_and_an_old_swap_refused(server):
    with contextlib.closing(RedisStore(server.url(), "ttl", ttl_s=0.2, timeout_s=10)) as store:
        assert store.swap("ada", "m", b"old", None)
        wait_until_gone(store, "ada", "m")
    with contextlib.closing(RedisStore(server.url(), "ttl", timeout_s=10)) as store:
        revision = put(store, "ada", "m", b"new")
        for small in range(5):
            assert not store.swap("ada", "m", b"late", small)
        assert store.get("ada", "m") == Stored(b"new", revision)


def raw(server: Server) -> object:
    import redis

    return redis.Redis(port=server.port, password=PASSWORD)


def test_each_put_renews_the_time_that_a_user_is_kept(server, in_redis):
    put(in_redis, "ada", "m", b"")
    with contextlib.closing(raw(server)) as client:
        (key,) = client.keys(f"{in_redis._prefix}:*")
        for milliseconds in (client.pttl(key), 1000 * client.ttl(key)):
            assert 29.9 * 24 * 3600 * 1000 < milliseconds <= 30 * 24 * 3600 * 1000
        client.expire(key, 100)
        in_redis.get("ada", "m")
        assert client.ttl(key) <= 100
        put(in_redis, "ada", "m", b"")
        assert client.ttl(key) > 29 * 24 * 3600


def test_models_that_are_served_no_more_are_dropped_with_the_first_put_of_a_new_one(
    server, in_redis
):
    put(in_redis, "ada", "old", b"")
    put(in_redis, "ada", "used", b"")
    with contextlib.closing(raw(server)) as client:
        (key,) = client.keys(f"{in_redis._prefix}:*")
        for model, days in (("old", 31), ("used", 29)):
            put_at = int(client.hget(key, f"put {model}"))
            assert put_at / 1000 == pytest.approx(time.time(), abs=60)
            client.hset(key, f"put {model}", put_at - days * 24 * 3600 * 1000)
        put(in_redis, "ada", "new", b"")
        assert client.hlen(key) == 2 * 3
    models = ("old", "used", "new")
    assert [data_of(in_redis, "ada", model) for model in models] == [None, b"", b""]


def test_remove_asks_for_one_key_and_no_key_shows_its_user(server, in_redis):
    put(in_redis, "ada-lovelace", "m", b"")
    with contextlib.closing(raw(server)) as client:
        assert not [key for key in client.keys("*") if b"lovelace" in key]
        client.config_resetstat()
        in_redis.remove("ada-lovelace")
        asked = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    assert asked == {"config|resetstat", "del"}


def every_call(store: RedisStore) -> list[Callable[[], object]]:
    return [
        lambda: store.get("ada", "m"),
        lambda: store.swap("ada", "m", b"", None),
        lambda: store.remove("ada"),
    ]


def failing(store: RedisStore, says: str, port: int) -> None:
    """Every call is a WorkError that says so, names host and port and holds no password."""
    for call in every_call(store):
        with pytest.raises(WorkError, match=says) as caught:
            call()
        assert f"127.0.0.1:{port}" in str(caught.value)
        assert PASSWORD[:4] not in str(caught.value)


def test_a_server_that_is_killed_is_named_without_its_password_and_used_when_it_is_back(tmp_path):
    pytest.importorskip("redis", reason="the extra `serve` is not installed")
    port = free_port()
    with running(tmp_path, port) as server:
        store = RedisStore(server.url(), timeout_s=10)
        put(store, "ada", "m", b"lost with the server")
        server.process.kill()
        server.process.wait()
        failing(store, "cannot be reached: .*refused|failed: ConnectionError", port)
    with contextlib.closing(store), running(tmp_path, port):
        assert store.get("ada", "m") is None
        put(store, "ada", "m", b"new")


def test_a_wrong_password_is_told_and_not_shown(server):
    for given in (server.url(PASSWORD[:4]), f"redis://127.0.0.1:{server.port}"):
        with contextlib.closing(RedisStore(given, timeout_s=10)) as store:
            failing(store, "refuses the user or the password", server.port)


def test_a_server_that_does_not_answer_is_not_waited_for():
    pytest.importorskip("redis", reason="the extra `serve` is not installed")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}"
        with contextlib.closing(RedisStore(url, timeout_s=0.1)) as store:
            started = time.monotonic()
            failing(store, r"did not answer within 0\.1 s", port)
            assert time.monotonic() - started < 5


def test_a_full_server_is_told_by_its_code(server, in_redis):
    put(in_redis, "ada", "m", b"")
    with contextlib.closing(raw(server)) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(WorkError, match="failed: OutOfMemoryError"):
                put(in_redis, "ada", "m", b"new")
        finally:
            client.config_set("maxmemory", 0)
    assert data_of(in_redis, "ada", "m") == b""


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that hands each connection to `answer`."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            answer(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield fake.server_address[1]
        finally:
            fake.shutdown()
            thread.join()


def test_a_server_that_repeats_the_password_is_not_quoted():
    pytest.importorskip("redis", reason="the extra `serve` is not installed")

    def repeat(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(
                b"-ERR unknown command `HELLO`, with args: `%s\r\n" % PASSWORD[:6].encode()
            )

    with serving(repeat) as port:
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}"
        with contextlib.closing(RedisStore(url, timeout_s=10)) as store:
            failing(store, "failed: ", port)


def test_a_swap_whose_answer_is_lost_is_not_sent_again(server, in_redis):
    """Sent again it would be refused, and `changed` would add the event twice."""
    sent = []

    def lose_the_answer(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as behind:
            while asked := connection.recv(65536):
                behind.sendall(asked)
                if b"EVALSHA" in asked:
                    sent.append(asked)
                    behind.recv(65536)
                    return
                connection.sendall(behind.recv(65536))

    before = put(in_redis, "ada", "m", b"")
    with serving(lose_the_answer) as port:
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}"
        store = RedisStore(url, in_redis._prefix, timeout_s=10)
        with contextlib.closing(store), pytest.raises(WorkError, match="failed: ConnectionError"):
            changed(store, "ada", "m", adding("once"))
    assert len(sent) == 1
    assert in_redis.get("ada", "m") == Stored(b"once\n", before + 1)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "unix:///tmp/redis.sock",
        "redis://",
        "redis://:s3cret@/0",
        "redis://host:s3cret",
        "redis://host:99999",
        "redis://:s3cret/2@host",
        "redis://:12/s3cret@host",
        "redis://ada:12/s3cret@host",
        "redis://ada:12#s3cret@host",
        "redis://ada:12?s3cret@host",
        "redis://ada:12?ssl_ca_certs=s3cret@host",
        "redis://host/zero",
        "redis://host/0?decode_responses=1",
        "rediss://host/0?socket_timeout=1000",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_shown(url):
    with pytest.raises(InputError, match=r"is redis://\[USER:PASSWORD@\]HOST") as caught:
        RedisStore(url)
    assert not {"s3cret", "ada", "12"} & set(str(caught.value).replace("/", " ").split())
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MemoryStore(capacity=0), "at least 1, got 0"),
        (lambda: RedisStore(ttl_s=0), r"ttl_s must lie in \[0.001, 1e\+10\], got 0"),
        (lambda: RedisStore(ttl_s=float("nan")), "ttl_s must lie .* got nan"),
        (lambda: RedisStore(timeout_s=0), "timeout_s must be positive, got 0"),
    ],
)
def test_settings_that_keep_nothing_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(InputError, match=r"pip install 'recsys\[serve\]'"):
        RedisStore()
