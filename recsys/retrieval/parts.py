"""A Parquet file written in parts, each whole or not at all, and joined when all of them are there.

    FILE.parts/plan.json            what the parts depend on
    FILE.parts/part-00000.parquet   the first rows of FILE, and so on

What is stopped in the middle goes on with the parts that are missing.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.checkpoint import read_json, write_json
from recsys.errors import InputError, WorkError
from recsys.whole import written_whole

PLAN = "plan.json"


@dataclass(frozen=True)
class Parts:
    """The parts of one file."""

    out: Path
    """The file they become."""
    schema: pa.Schema
    """Its columns."""
    plan: dict[str, Any]
    """All that the rows depend on, as JSON values by name; parts of another plan are not used."""

    @property
    def folder(self) -> Path:
        """Where the parts lie until they are joined."""
        return self.out.with_name(self.out.name + ".parts")

    def path(self, number: int) -> Path:
        """The file of a part, counted from 0."""
        return self.folder / f"part-{number:05}.parquet"

    def written(self) -> list[Path]:
        """The parts that are there, damaged ones too."""
        return sorted(self.folder.glob("part-*.parquet"))

    def open(self) -> None:
        """Make the folder, or go on with it. InputError where its parts are of another plan."""
        anew = f"remove the folder {self.folder} to begin anew"
        if not (self.folder / PLAN).exists():
            if self.written():
                raise InputError(f"{self.folder} holds parts without {PLAN}: {anew}")
            write_json(self.folder / PLAN, self.plan)
            return
        try:
            before = read_json(self.folder / PLAN)
        except InputError as error:
            raise InputError(f"{error}; {anew}") from None
        if not isinstance(before, dict):
            raise InputError(f"{self.folder / PLAN} is damaged; {anew}")
        names = [name for name in {**self.plan, **before} if name not in self.plan]
        names += [name for name, value in self.plan.items() if before.get(name) != value]
        if names:
            changes = ", ".join(
                f"{name} was {before.get(name)}, is {self.plan.get(name)}" for name in names
            )
            raise InputError(f"{self.folder} was begun with another plan ({changes}): {anew}")

    def is_whole(self, number: int) -> bool:
        """Whether a part is there and every byte of it can be read."""
        if not self.path(number).is_file():
            return False
        try:
            for _ in self._row_groups(number):
                pass
        except WorkError:
            return False
        return True

    def write(self, number: int, tables: Iterable[pa.Table]) -> None:
        """Write a part, a row group a table."""
        import pyarrow.parquet as pq

        with (
            written_whole(self.path(number)) as aside,
            pq.ParquetWriter(aside, self.schema, write_page_checksum=True) as writer,
        ):
            for table in tables:
                writer.write_table(table)

    def join(self, count: int) -> int:
        """Write the file from its `count` parts and remove them; the number of rows.

        Raises WorkError where a part cannot be read.
        """
        import pyarrow.parquet as pq

        rows = 0
        with written_whole(self.out) as aside, pq.ParquetWriter(aside, self.schema) as writer:
            for number in range(count):
                for table in self._row_groups(number):
                    writer.write_table(table)
                    rows += table.num_rows
        self.remove()
        return rows

    def remove(self) -> None:
        """Remove the folder, the plan last: whatever is left of it can still be gone on with."""
        for path in self.written():
            path.unlink()
        shutil.rmtree(self.folder)

    def _row_groups(self, number: int) -> Iterator[pa.Table]:
        """A part, a row group at a time. Raises WorkError where it is damaged."""
        import pyarrow.parquet as pq

        path = self.path(number)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group).select(self.schema.names).cast(self.schema)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise WorkError(
                f"{path} is damaged, the same command writes it again: {error}"
            ) from None
