"""Downloads that appear whole or not at all, go on where they were cut, and are verified."""

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.errors import WorkError
from recsys.whole import held_alone

CHUNK = 1 << 18
TIMEOUT_SECONDS = 60


def download(
    url: str, target: Path, *, md5: str | None = None, report: Callable[[str], None]
) -> Path:
    """Fetch `url` into `target`, through `target.part`, which a later call goes on from.

    Raises WorkError when the server does not answer, does not have the file, stops in the middle
    (what came is kept for the next try), or sends something else than `md5` says (it is discarded).
    InputError while another process downloads it.
    """
    with fetched_alone(target):
        return _download(url, target, md5, report)


@contextmanager
def fetched_alone(target: Path) -> Iterator[None]:
    """Keep other processes from fetching a file or folder as long as the block.

    InputError where another process does. Two that wrote to one part would leave it damaged.
    """
    lock = target.with_name(f"{target.name}.lock")
    taken = f"{target} is being downloaded by another process: wait for that, then try again"
    with held_alone(lock, taken):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _download(url: str, target: Path, md5: str | None, report: Callable[[str], None]) -> Path:
    part = target.with_name(target.name + ".part")
    try:
        _fetch(url, part, report)
    except urllib.error.HTTPError as error:
        raise WorkError(
            f"{url} cannot be downloaded: the server says {error.code} {error.reason}"
        ) from None
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
    ) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise WorkError(f"{url} cannot be downloaded: {reason or type(error).__name__}") from None
    if md5 is not None and _md5(part) != md5:
        part.unlink()
        raise WorkError(
            f"{url} was discarded: its MD5 sum is not {md5}, which the publisher states"
        )
    os.replace(part, target)
    return target


def _fetch(url: str, part: Path, report: Callable[[str], None]) -> None:
    """Append what is missing of `part`, or write it anew where the server cannot go on."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: nothing is left to send, or the file has changed
            raise
        part.unlink()
        _fetch(url, part, report)
        return
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        expected = response.headers.get("Content-Length")
        total = have + int(expected) if expected is not None else None
        size = f"{total / 1e6:.1f} MB" if total is not None else "size unknown"
        report(f"{'resuming' if resumed else 'downloading'} {url} ({size})")
        with open(part, "ab" if resumed else "wb") as file, _Bar(total, have) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.advance(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise WorkError(
            f"{url} was cut off after {part.stat().st_size:,} of {total:,} bytes; try again to go"
            " on"
        )


class _Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, total: int | None, done: int):
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

            self._bar = Progress(
                BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True)
            )
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "_Bar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, size: int) -> None:
        """So many more bytes have come."""
        if self._bar is not None:
            self._bar.advance(self._task, size)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
