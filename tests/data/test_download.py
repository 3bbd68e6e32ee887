"""Downloads against a server on this machine: whole, cut off, wrong, missing."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from recsys.data.download import download
from recsys.errors import InputError, WorkError

CONTENT = bytes(range(256)) * 3000


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole serves the file, /cut stops half-way through it, /plain knows no ranges, /slow goes on
    when it may."""

    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        start = 0
        asked = self.headers.get("Range")
        if asked and self.path != "/plain":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
        self.server.starts.append(start)
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/slow":
            self.wfile.write(body[:1000])
            self.server.begun.set()
            self.server.may_go_on.wait(timeout=10)
            body = body[1000:]
        cut = self.path == "/cut" and not self.server.mended
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.mended, server.starts = False, []
    server.begun, server.may_go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_a_whole_file_arrives_with_its_checksum(server, tmp_path):
    md5 = hashlib.md5(CONTENT).hexdigest()
    path = download(address(server, "/whole"), tmp_path / "new" / "file", md5=md5, report=print)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_cut_file_is_kept_aside_and_gone_on_with(server, tmp_path):
    with pytest.raises(WorkError, match="cut off after 384,000 of 768,000 bytes"):
        download(address(server, "/cut"), tmp_path / "file", report=print)
    assert not (tmp_path / "file").exists()
    server.mended = True
    download(address(server, "/cut"), tmp_path / "file", report=print)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.starts == [0, 384_000]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"something old")
    download(address(server, "/plain"), tmp_path / "file", report=print)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    download(address(server, "/whole"), tmp_path / "file", report=print)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_that_another_process_downloads_is_left_to_it(server, tmp_path):
    target, url = tmp_path / "file", address(server, "/slow")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(download, url, target, report=print)
        assert server.begun.wait(timeout=10)
        with pytest.raises(InputError, match="file is being downloaded by another process"):
            download(url, target, report=print)
        server.may_go_on.set()
        assert first.result() == target
    assert target.read_bytes() == CONTENT
    assert server.starts == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert download(url, target, report=print) == target


def test_a_wrong_checksum_discards_what_came(server, tmp_path):
    with pytest.raises(WorkError, match="discarded"):
        download(address(server, "/whole"), tmp_path / "file", md5="0" * 32, report=print)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_a_missing_server_are_named(server, tmp_path):
    with pytest.raises(WorkError, match="404"):
        download(address(server, "/missing"), tmp_path / "file", report=print)
    with pytest.raises(WorkError, match="cannot be downloaded"):
        download("http://127.0.0.1:9/file", tmp_path / "file", report=print)
