"""What commands print: a table or JSON on standard output, progress on standard error."""

import sys
from typing import Any


def reporter_of_terminal() -> Any:
    """Says how the work goes: moving bars on a terminal, plain lines elsewhere."""
    from recsys.training.watch import PlainReporter, TerminalReporter

    return TerminalReporter() if sys.stderr.isatty() else PlainReporter()


def show(result: dict[str, Any], as_json: bool, table: Any) -> None:
    """One JSON object, or the table that `table(result)` prints."""
    if as_json:
        import json

        print(json.dumps(result, allow_nan=False))
    else:
        table(result)
