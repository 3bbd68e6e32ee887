"""A data set from whatever a user names: a prepared folder, or a source prepared into the cache."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.config import to_dict
from recsys.data.formats import Report, source_from_table
from recsys.data.interactions import Source
from recsys.data.prepare import DataConfig, prepare
from recsys.data.sequences import SequenceDataset
from recsys.data.sessions import whole_source
from recsys.data.sources import cache_dir, resolve
from recsys.errors import InputError


def open_data(data: Any, config: DataConfig, report: Report) -> tuple[SequenceDataset, Path]:
    """(data set, its folder) of a prepared folder, or of a source prepared into the cache."""
    if is_prepared(data):
        if config != DataConfig():
            raise InputError(
                f"{data} is prepared already: settings named data.* apply when a log is prepared"
            )
        folder = Path(data).expanduser()
        return SequenceDataset.load(folder), folder.resolve()
    if isinstance(data, str | Path) and (Path(data) / "sequences.arrow").is_file():
        raise InputError(f"{data} is damaged: it has no dataset.json; prepare it again")
    source = source_of(data, config, report)
    folder = _place(source, config)
    if (dataset := kept(folder, report)) is not None:
        report(f"using the data prepared before in {folder}")
        return dataset, folder
    return prepare(source, folder, config, report=report), folder


def kept(folder: Path, report: Report) -> SequenceDataset | None:
    """What the cache keeps in a folder; None where that is nothing or damaged, which is told."""
    if not is_prepared(folder):
        return None
    try:
        return SequenceDataset.load(folder)
    except InputError as error:
        report(f"{error}: preparing it anew")
        return None


def is_prepared(data: Any) -> bool:
    """True for a folder with a dataset.json."""
    return isinstance(data, str | Path) and (Path(data).expanduser() / "dataset.json").is_file()


def source_of(data: Any, config: DataConfig, report: Report) -> Source:
    """The source that a name, a path, a pandas DataFrame or an Arrow table stands for."""
    if isinstance(data, str | Path):
        return resolve(str(data), report=report, columns=config.columns)
    return source_from_table(data, config.columns, "dataframe")


def content(table: pa.Table) -> bytes:
    """A checksum of names, types and values."""
    digest = hashlib.sha256(table.schema.remove_metadata().serialize())
    for batch in table.to_batches():
        digest.update(batch.serialize())
    return digest.digest()


def _place(source: Source, config: DataConfig) -> Path:
    """Where the cache keeps this source prepared in this way: a folder named after both."""
    digest = hashlib.sha256(json.dumps([source.name, to_dict(config)]).encode())
    files = whole_source(source, config.sessions, config.test).parts
    items = (Path(config.items),) if config.items and Path(config.items).is_file() else ()
    for file in files + source.item_files + items:
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    if source.table is not None:
        digest.update(content(source.table))
    name = f"{source.name.replace(':', '-')}-{digest.hexdigest()[:12]}"
    return cache_dir().resolve() / "prepared" / name
