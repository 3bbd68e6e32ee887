"""The recsys command inside this process, and what tests of it look at."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recsys.cli import main


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


def recsys(*words: object) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return Answer(int(left.value.code or 0), out.getvalue(), err.getvalue())


def done(*words: object) -> Answer:
    answer = recsys(*words)
    assert answer.code == 0, answer.err
    return answer


def refused(*words: object, code: int = 2) -> str:
    """What is said when a command is refused: at most two lines."""
    answer = recsys(*words)
    assert (answer.code, answer.out) == (code, "")
    _, mark, message = answer.err.partition("error: ")
    assert mark
    assert message.count("\n") <= 2
    return message


def sets(settings: dict[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
