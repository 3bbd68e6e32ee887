"""Files and folders that appear whole or not at all: written aside, then renamed into place."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.errors import InputError, WorkError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it into place when the block ends well.

    Folders on the way are made. WorkError where the disk is full.
    """
    aside = path.with_name(path.name + ".part")
    with _a_full_disk_told(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """The same for a folder; what stood in its place goes when the new one is there."""
    folder = folder.resolve()
    aside, before = (folder.with_name(f".{folder.name}.{word}") for word in ("part", "before"))
    shutil.rmtree(aside, ignore_errors=True)
    with _a_full_disk_told(folder):
        try:
            aside.mkdir(parents=True)
            yield aside
            shutil.rmtree(before, ignore_errors=True)
            if folder.exists():
                os.replace(folder, before)
            os.replace(aside, folder)
        finally:
            if before.exists() and not folder.exists():
                os.replace(before, folder)
            for rest in (aside, before):
                shutil.rmtree(rest, ignore_errors=True)


@contextmanager
def held_alone(lock: Path, taken: str) -> Iterator[None]:
    """Hold a file, made here where it is not there, against other processes, as long as the block.

    InputError, with the words of `taken`, where another holds it. A process that dies lets go.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(taken) from None
        yield


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, what a library made of it, or its cause says that no space is left."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left on device" in str(error):
        return True
    return error.__cause__ is not None and is_disk_full(error.__cause__)


@contextmanager
def _a_full_disk_told(place: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if is_disk_full(error):
            raise WorkError(
                f"no space left to write {place}; what was there before is unharmed"
            ) from error
        raise
