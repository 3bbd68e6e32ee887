"""Every command and every piece of Python in the documentation does what it says."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

from recsys.cli import main
from recsys.data import sample
from recsys.data.prepare import DataConfig
from recsys.data.split import SplitConfig
from recsys.training.trainer import TrainerConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = {"False": "false", "None": "none"}
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each block that is to be run, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all pages but the README, so that the sample is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def background() -> Iterator[list[subprocess.Popen[str]]]:
    """What a page leaves running, until its end."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.terminate()
        with process:
            process.wait(timeout=30)


def start(line: str) -> subprocess.Popen[str]:
    """A service, once it says that it serves."""
    command = [sys.executable, "-m", "recsys.cli", *shlex.split(line)[1:-1]]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert '"serving"' in process.stderr.readline()
    return process


def run_commands(text: str, background: list[subprocess.Popen[str]]) -> None:
    """Each line of `recsys …` in this process, which is quick; those of anything else by sh."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    for ours, some in groupby(lines, lambda line: line.startswith("recsys ")):
        if not ours:
            subprocess.run(["sh", "-e", "-c", "\n".join(some)], check=True, capture_output=True)
            continue
        for line in some:
            if line.endswith(" &"):
                background.append(start(line))
                continue
            with pytest.raises(SystemExit) as left:
                main(shlex.split(line, comments=True)[1:])
            assert not left.value.code, line


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name
)
def test_a_page_of_the_documentation_works_from_top_to_bottom(
    page: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    background: list[subprocess.Popen[str]],
):
    if page.name == "README.md":
        cache = tmp_path / "cache"
    else:  # the same store with fewer shoppers, who can be asked the same and take less time
        monkeypatch.setattr(sample, "generate", partial(sample.generate, users=600))
    monkeypatch.setenv("RECSYS_CACHE", str(cache))
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    # Where sh runs a block, it finds the command of the environment that runs the tests.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    names: dict[str, object] = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "sh":
            run_commands(text, background)
        else:
            exec(compile(text, str(page), "exec"), names)


def test_there_are_pages_to_check():
    assert sum(len(blocks(page)) for page in PAGES) >= 10


def test_every_setting_of_trainer_split_and_data_is_on_its_page_with_its_default():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (\S+) \|", page, re.MULTILINE))
    kinds = {"trainer": TrainerConfig, "split": SplitConfig, "data": DataConfig}
    assert listed == {
        f"{section}.{field.name}": WORDS.get(str(field.default), str(field.default))
        for section, kind in kinds.items()
        for field in fields(kind)
    }
