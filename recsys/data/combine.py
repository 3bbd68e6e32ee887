"""Several data sets as one, for a training that is to learn from all of them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.data.cache import content, kept
from recsys.data.sequences import (
    FORMAT_VERSION,
    SequenceDataset,
    fingerprint,
    int_array,
    write_sequences,
)
from recsys.data.sources import cache_dir
from recsys.data.text import Report, item_attributes
from recsys.errors import InputError
from recsys.whole import folder_written_whole


def combine(datasets: Sequence[SequenceDataset], report: Report) -> Path:
    """A prepared folder in the cache that holds the histories and the texts of all data sets.

    Users and items are called NAME:ID after their data set, so that none meet by chance. Times are
    left out: they are in units of their own. So are given test sets, which nothing may learn from;
    items that only they have stay, counted 0 times. InputError where two have one name, or one no
    text.
    """
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise InputError(f"data sets to be combined must have different names, got {names}")
    digest = hashlib.sha256(json.dumps([d.fingerprint for d in datasets]).encode())
    for dataset in datasets:  # a fingerprint leaves texts out
        digest.update(content(dataset.catalogue))
        if dataset.test_users:  # another folder than when test sequences were not left out
            digest.update(f"without {dataset.test_users} test sequences\n".encode())
            report(f"{dataset.name}: {dataset.test_users:,} sequences of its test set take no part")
    folder = cache_dir() / "prepared" / f"{'+'.join(names)}-{digest.hexdigest()[:12]}"
    if kept(folder, report) is None:
        with folder_written_whole(folder) as aside:
            _write(aside, [_without_test(dataset) for dataset in datasets], report)
    return folder


def _without_test(dataset: SequenceDataset) -> SequenceDataset:
    """The data set without its given test set, whose sequences stand last; the catalogue whole."""
    users = len(dataset) - dataset.test_users
    end = int(dataset.offsets[users])
    return replace(
        dataset,
        items=dataset.items[:end],
        offsets=dataset.offsets[: users + 1],
        timestamps=None if dataset.timestamps is None else dataset.timestamps[:end],
        users=dataset.users[:users],
        info={**dataset.info, "test_users": 0},
    )


def _write(folder: Path, datasets: Sequence[SequenceDataset], report: Report) -> None:
    import pyarrow.parquet as pq

    first_items = np.cumsum([0, *(dataset.num_items for dataset in datasets)])
    items = np.concatenate(
        [d.items + np.int32(first) for d, first in zip(datasets, first_items, strict=False)]
    )
    lengths = np.concatenate([np.diff(dataset.offsets) for dataset in datasets])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users = pa.concat_arrays([_named(d.name, d.users) for d in datasets])
    catalogue = pa.concat_tables(
        [_catalogue(dataset, report) for dataset in datasets], promote_options="default"
    )
    write_sequences(folder / "sequences.arrow", users, items, offsets, None)
    pq.write_table(catalogue, folder / "items.parquet")
    raw_items = catalogue["item"].combine_chunks()
    info = {
        "format": FORMAT_VERSION,
        "name": "+".join(dataset.name for dataset in datasets),
        "fingerprint": fingerprint(items, offsets, None, raw_items),
        "users": len(users),
        "items": catalogue.num_rows,
        "interactions": len(items),
        "time_range": None,
        "time_unit": None,
        "parts": {dataset.name: dataset.fingerprint for dataset in datasets},
    }
    (folder / "dataset.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def _catalogue(dataset: SequenceDataset, report: Report) -> pa.Table:
    """Raw ids, counts and texts, lists of them joined."""
    attributes = item_attributes(dataset.catalogue, lambda text: report(f"{dataset.name}: {text}"))
    # Beside other columns `text` would stand for all of them; here it is one of many sets' own.
    columns = ["description" if name == "text" else name for name in attributes.columns]
    texts = zip(columns, attributes.values, strict=True)
    counts = np.bincount(dataset.items, minlength=dataset.num_items + 1)[1:].astype(np.int64)
    return pa.table(
        {
            "item": _named(dataset.name, dataset.catalogue["item"]),
            "count": int_array(counts),
            **{name: pa.array(values, pa.string()) for name, values in texts},
        }
    )


def _named(name: str, raw: pa.Array | pa.ChunkedArray) -> pa.Array:
    return pa.array([f"{name}:{value}" for value in raw.to_pylist()], pa.string())
