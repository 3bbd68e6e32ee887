"""A file or a folder appears whole or not at all."""

import errno
import os
import re
from pathlib import Path

import pytest

from recsys.errors import WorkError
from recsys.whole import folder_written_whole, written_whole


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path):
    path = tmp_path / "deep" / "file"
    with written_whole(path) as aside:
        aside.write_text("new")
        assert aside.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, error: BaseException):
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with written_whole(path) as aside:
            aside.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def holds(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("before", [None, {"a": "old", "gone": "old"}])
def test_a_folder_appears_when_the_block_ends_well(tmp_path: Path, before: dict[str, str] | None):
    folder = tmp_path / "folder"
    if before is not None:
        folder.mkdir()
        for name, text in before.items():
            (folder / name).write_text(text)
    with folder_written_whole(folder) as aside:
        (aside / "a").write_text("new")
        assert folder.exists() == (before is not None)
    assert holds(folder) == {"a": "new"}
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (ValueError("broken"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), WorkError),
    ],
)
def test_an_error_leaves_the_old_folder(
    tmp_path: Path, error: BaseException, seen: type[BaseException]
):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("old")

    def write() -> None:
        with folder_written_whole(folder) as aside:
            (aside / "a").write_text("half")
            raise error

    with pytest.raises(seen):
        write()
    assert holds(folder) == {"a": "old"}
    assert os.listdir(tmp_path) == ["folder"]


def test_what_a_killed_writer_left_is_no_part_of_the_folder(tmp_path: Path):
    rest = tmp_path / ".folder.part"
    rest.mkdir()
    (rest / "half").write_text("old")
    with folder_written_whole(tmp_path / "folder") as aside:
        (aside / "a").write_text("new")
    assert holds(tmp_path / "folder") == {"a": "new"}
    assert os.listdir(tmp_path) == ["folder"]


def test_a_disk_full_within_a_folder_names_the_folder_asked_for(tmp_path: Path):
    def write() -> None:
        with (
            folder_written_whole(tmp_path / "folder") as aside,
            written_whole(aside / "part" / "a"),
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WorkError, match=re.escape(f"write {tmp_path / 'folder'};")):
        write()
    assert os.listdir(tmp_path) == []
