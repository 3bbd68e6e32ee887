"""Source: where an interaction log lies and how its lines are read.

A source is resolved (recsys.data.sources), then prepared (recsys.data.prepare) into a data set
folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

Format = Literal["csv", "json", "parquet", "sequences", "lines"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold an interaction."""

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    """None: guess it; a log without any time column keeps its file order."""


@dataclass(frozen=True)
class Source:
    """A log on disk (or in memory) that can be read row by row in a fixed order."""

    name: str
    """How tables and metrics.json call the data."""
    files: tuple[Path, ...] = ()
    """Parts in reading order; any of them may end in .gz."""
    test_files: tuple[Path, ...] = ()
    """Parts of a given test set, read like `files` and behind them."""
    table: pa.Table | None = None
    """The log itself when it comes from Python (a DataFrame or Arrow table), without files."""
    format: Format = "csv"
    """csv: any delimited text; sequences: `user item item ...`, one user a line; lines: `item item
    ...`, one session a line."""
    delimiter: str | None = None
    """Between fields of a csv; None: sniffed from the first lines."""
    header: tuple[str, ...] | None = None
    """Column names of a csv that has no header line; None: the first line names them."""
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    columns: Columns = Columns()
    read_items: Callable[[], pa.Table] | None = None
    """Reads what is known of the items: `item` (raw id), and texts: `title`, `brand`, `categories`
    (list of strings), others; `text` is all of them in one. Items outside the log may be there."""
    item_files: tuple[Path, ...] = ()
    """What `read_items` reads."""
    min_user_events: int = 1
    """The k-core that the source's users expect, where the caller does not say."""
    min_item_events: int = 1

    @property
    def parts(self) -> tuple[Path, ...]:
        """All files in reading order."""
        return self.files + self.test_files

    @property
    def where(self) -> str:
        """What messages call it: its file, or its name where it has none or several."""
        return str(self.files[0]) if len(self.files) == 1 else self.name
