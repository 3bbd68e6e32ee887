"""SequenceDataset: every user's items as one flat array and offsets, memory-mapped from Arrow.

A prepared data set is a folder:

    dataset.json       name, fingerprint, counts, time unit, source and settings
    sequences.arrow    Arrow IPC, one record batch, a row a user: user (raw id), items
                       (large_list<int32>), timestamps (large_list<int64>; not in a log without)
    items.parquet      a row an item, in order of item number: item (raw id), count, and title,
                       brand, categories, text where the source has them, or the columns of texts
                       of the user's own table of items
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.errors import InputError

FORMAT_VERSION = 1
BLOCK = 1 << 22
"""Times that are looked through at once."""


@dataclass(frozen=True)
class SequenceDataset:
    """The histories of U users over V items, each oldest first."""

    items: np.ndarray
    """int32 [interactions], item numbers 1..V."""
    offsets: np.ndarray
    """int64 [U+1]: user u owns items[offsets[u]:offsets[u+1]]."""
    timestamps: np.ndarray | None
    """int64 [interactions] in `info["time_unit"]`, never falling in a user; None without times."""
    users: pa.Array
    """[U] raw user ids."""
    catalogue: pa.Table
    """[V rows] raw ids (`item`), `count` and what is known of each item; row i-1 is item i."""
    info: dict = field(default_factory=dict)
    """The contents of dataset.json."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> np.ndarray:
        """int32 history of user number `user`, counted from 0."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def num_items(self) -> int:
        """V, the number of items without padding."""
        return self.catalogue.num_rows

    @property
    def name(self) -> str:
        """The name of the source, for tables."""
        return self.info.get("name", "unnamed")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the prepared sequences, in hexadecimal."""
        return self.info["fingerprint"]

    @property
    def facts(self) -> dict[str, str | int]:
        """What a run and its metrics say of the data."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "users": len(self),
            "items": self.num_items,
            "interactions": len(self.items),
        }

    @property
    def test_users(self) -> int:
        """How many of the last sequences are a test set that was given apart."""
        return self.info.get("test_users", 0)

    @classmethod
    def load(cls, folder: str | Path) -> "SequenceDataset":
        """Open a prepared folder without reading the sequences into memory."""
        folder = Path(folder)
        info = _description(folder)
        try:
            with pa.memory_map(str(folder / "sequences.arrow")) as source:
                table = pa.ipc.open_file(source).read_all()
            # Imported here: a data set from memory does without. Not read_table: it would import
            # pandas where that is installed, 40 MB.
            import pyarrow.parquet as pq

            catalogue = pq.ParquetFile(folder / "items.parquet").read()
            # Arrow trusts a file: a text's place beyond its buffer would be read from elsewhere.
            for part in (table, catalogue):
                part.validate(full=True)
            _check_columns(table, catalogue, str(folder))
            dataset = cls(**_columns(table), catalogue=catalogue, info=info)
        except FileNotFoundError as error:
            raise InputError(
                f"{folder} is incomplete: {error.filename or error}; prepare it again"
            ) from None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{folder} is damaged: {error}; prepare it again") from None
        dataset.check(str(folder))
        return dataset

    @classmethod
    def from_arrays(
        cls,
        items: np.ndarray,
        offsets: np.ndarray,
        timestamps: np.ndarray | None = None,
        *,
        num_items: int | None = None,
        name: str = "arrays",
    ) -> "SequenceDataset":
        """A data set from numbers alone: items 1..V are their own raw ids, users count from 0."""
        items = np.ascontiguousarray(items, dtype=np.int32)
        offsets = np.ascontiguousarray(offsets, dtype=np.int64)
        if timestamps is not None:
            timestamps = np.ascontiguousarray(timestamps, dtype=np.int64)
        size = int(items.max(initial=0)) if num_items is None else num_items
        raw = pa.array(np.arange(1, size + 1))
        catalogue = pa.table({"item": raw, "count": np.bincount(items, minlength=size + 1)[1:]})
        users = pa.array(np.arange(len(offsets) - 1))
        info = {
            "name": name,
            "fingerprint": fingerprint(items, offsets, timestamps, raw),
            "users": len(users),
            "items": size,
            "interactions": len(items),
        }
        return cls(items, offsets, timestamps, users, catalogue, info)

    def check(self, where: str) -> None:
        """Refuse a data set whose parts do not fit together: files from outside are not trusted."""
        lengths = np.diff(self.offsets)
        if len(self.offsets) < 2 or len(self.items) == 0:
            raise InputError(f"{where} holds no interactions")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.items) or lengths.min() < 0:
            raise InputError(
                f"{where} is damaged: its offsets do not cover its items; prepare it again"
            )
        if self.items.min() < 1 or self.items.max() > self.num_items:
            raise InputError(
                f"{where} is damaged: item numbers run from {self.items.min()} to"
                f" {self.items.max()}, the catalogue from 1 to {self.num_items}; prepare it again"
            )
        if self.timestamps is not None and len(self.timestamps) != len(self.items):
            raise InputError(f"{where} is damaged: it has not one time an item; prepare it again")
        if self.timestamps is not None and _fall(self.timestamps, self.offsets):
            raise InputError(
                f"{where} is damaged: its times fall within a sequence; prepare it again"
            )
        if not isinstance(self.test_users, int) or not 0 <= self.test_users < len(self):
            raise InputError(
                f"{where} is damaged: test_users is {self.test_users!r} of {len(self)} sequences;"
                " prepare it again"
            )


def _description(folder: Path) -> dict:
    """The contents of dataset.json. InputError where it is not what this version writes."""
    file = folder / "dataset.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is not a prepared data set: it has no dataset.json") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}; prepare it again") from None
    found = info.get("format") if isinstance(info, dict) else None
    if found != FORMAT_VERSION:
        raise InputError(
            f"{folder} has data set format {found!r}, this version reads {FORMAT_VERSION};"
            " prepare it again"
        )
    if "fingerprint" not in info:
        raise InputError(f"{file} is damaged: it has no fingerprint; prepare it again")
    # Runs and other data sets are called after it: it must not lead out of their folder.
    name = info.get("name", "")
    if not isinstance(name, str) or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise InputError(
            f"{file} is damaged: its name is {name!r}, which is no name of a file; prepare it again"
        )
    return info


def _fall(times: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether a time is below the one before it of the same user."""
    for start in range(0, len(times) - 1, BLOCK):  # a mask of all of them may be too large
        block = times[start : start + BLOCK + 1]
        falls = np.flatnonzero(block[1:] < block[:-1]) + start + 1
        if (offsets[np.searchsorted(offsets, falls)] != falls).any():
            return True
    return False


def _check_columns(table: pa.Table, catalogue: pa.Table, where: str) -> None:
    """Refuse tables whose buffers are not what `_columns` takes them for."""
    wanted = {"items": pa.int32(), "timestamps": pa.int64()}
    for name, kind in wanted.items():
        if name == "timestamps" and name not in table.column_names:
            continue
        column = table[name] if name in table.column_names else pa.chunked_array([[]])
        if not pa.types.is_large_list(column.type) or column.type.value_type != kind:
            raise InputError(
                f"{where} is damaged: sequences.arrow has no column {name} of large_list<{kind}>;"
                " prepare it again"
            )
        if column.null_count or any(chunk.values.null_count for chunk in column.chunks):
            raise InputError(f"{where} is damaged: {name} hold a null; prepare it again")
    for file, columns, name in (
        ("sequences.arrow", table.column_names, "user"),
        ("items.parquet", catalogue.column_names, "item"),
    ):
        if name not in columns:
            raise InputError(f"{where} is damaged: {file} has no column {name}; prepare it again")
    if table.num_rows == 0:
        raise InputError(f"{where} holds no interactions")
    if "timestamps" in table.column_names and not all(
        items.offsets.equals(times.offsets)
        for items, times in zip(table["items"].chunks, table["timestamps"].chunks, strict=True)
    ):
        raise InputError(f"{where} is damaged: it has not one time an item; prepare it again")


def _columns(table: pa.Table) -> dict:
    """Views on the buffers of a sequences table; nothing is copied."""
    batch = table.combine_chunks()
    items = batch.column("items").chunk(0)
    offsets = _view(items.offsets, np.int64)
    columns = {
        "items": _view(items.values, np.int32),
        "offsets": offsets,
        "timestamps": None,
        "users": batch.column("user").chunk(0),
    }
    if "timestamps" in batch.column_names:
        columns["timestamps"] = _view(batch.column("timestamps").chunk(0).values, np.int64)
    return columns


def _view(values: pa.Array, dtype: type) -> np.ndarray:
    """The memory of an Arrow array without nulls. Arrow's to_numpy would import pandas, 40 MB."""
    flat: np.ndarray = np.frombuffer(values.buffers()[1], dtype=dtype)
    return flat[values.offset : values.offset + len(values)]


def fingerprint(
    items: np.ndarray,
    offsets: np.ndarray,
    timestamps: np.ndarray | None,
    raw_items: pa.Array,
    test_users: int = 0,
) -> str:
    """SHA-256 over lengths, item numbers, times, raw item ids and which sequences are a given test
    set, whatever the file layout."""
    digest = hashlib.sha256()
    digest.update(np.diff(offsets).astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(items, dtype="<i4").data)
    if timestamps is not None:
        digest.update(np.ascontiguousarray(timestamps, dtype="<i8").data)
    for raw in raw_items.to_pylist():
        digest.update(f"{raw}\n".encode())
    if test_users:
        digest.update(f"test {test_users}\n".encode())
    return digest.hexdigest()


def write_sequences(
    path: Path,
    users: pa.Array,
    items: np.ndarray,
    offsets: np.ndarray,
    timestamps: np.ndarray | None,
) -> None:
    """Write sequences.arrow from arrays, which may themselves be memory-mapped."""
    columns: dict[str, pa.Array] = {
        "user": users,
        "items": _list_array(items, offsets),
    }
    if timestamps is not None:
        columns["timestamps"] = _list_array(timestamps, offsets)
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _list_array(values: np.ndarray, offsets: np.ndarray) -> pa.LargeListArray:
    """Lists over existing memory: no copy of `values`."""
    return pa.LargeListArray.from_arrays(int_array(offsets), int_array(values))


def int_array(values: np.ndarray) -> pa.Array:
    """An Arrow array over the memory of int32 or int64 values.

    Arrow's own `array` would import pandas, where it is installed: 40 MB.
    """
    kind = {np.dtype(np.int32): pa.int32(), np.dtype(np.int64): pa.int64()}[values.dtype]
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(kind, len(values), [None, buffer])
