"""Items that come after training: a snapshot with them in it, beside the one that serves."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from recsys.data.item_vectors import VECTOR
from recsys.data.sequences import int_array
from recsys.data.text import is_text
from recsys.errors import InputError
from recsys.layers.item_encoder import with_items
from recsys.models.base import SequenceModel
from recsys.retrieval.snapshot import Snapshot


def upserted(now: Snapshot, given: Sequence[pa.Table], order_N: np.ndarray) -> Snapshot:
    """`now` with new items behind its last, and new texts for those it has.

    `given` and `order_N` are as `said` returns them; the order numbers the new items. InputError
    where the model does not know items by what is said of them.
    """
    known = [pc.index_in(table["item"], value_set=now.vocab.raw_ids) for table in given]
    described = [_described(*pair, now.catalogue) for pair in zip(given, known, strict=True)]
    rows = pa.concat_tables([table.select(now.catalogue.column_names) for table in described])
    rows = rows.take(int_array(order_N))
    known_N = np.concatenate([pc.fill_null(places, -1).to_numpy() for places in known])
    known_N = known_N.astype(np.int64)[order_N]
    new_N = known_N < 0
    place_N = known_N + 1
    place_N[new_N] = len(now.vocab) + 1 + np.arange(new_N.sum())
    catalogue = _catalogue(now.catalogue, rows, place_N)
    if now.describe is None:
        if new_N.any():
            raise InputError(
                "this model knows items by learned vectors alone and cannot serve new ones: train"
                " it with model.item_encoder=text or id+text"
            )
        return now.with_items(now.model, catalogue, place_N)
    # Together: of what is told of items in words some may be silent, but not all.
    groups = [list(group) for _, group in groupby(described, _has_vector)]
    merged = [pa.concat_tables(group, promote_options="permissive") for group in groups]
    features = np.concatenate([now.describe(table) for table in merged])[order_N]
    features_NF = torch.from_numpy(features).to(now.device)
    try:
        model = with_items(now.model, torch.from_numpy(place_N).to(now.device), features_NF)
    except ValueError as error:
        raise InputError(f"this model cannot serve new items: {error}") from None
    assert isinstance(model, SequenceModel)
    model.renew(torch.from_numpy(place_N).to(now.device))
    return now.with_items(model, catalogue, place_N)


def given_rows(items: Any, catalogue: pa.Table) -> pa.Table:
    """Items of a pandas DataFrame or an Arrow table, with ids of the catalogue's type."""
    if not isinstance(items, pa.Table):
        try:
            items = pa.Table.from_pandas(items, preserve_index=False)
        except (AttributeError, TypeError, pa.ArrowInvalid) as error:
            raise InputError(
                f"items must be a pandas DataFrame or an Arrow table, got {type(items).__name__}:"
                f" {error}"
            ) from None
    if "item" not in items.column_names:
        names = ", ".join(map(repr, items.column_names))
        raise InputError(f"items have no column 'item' of raw ids (columns: {names})")
    if items.num_rows == 0:
        raise InputError("items are empty: there is nothing to serve")
    kind = catalogue.schema.field("item").type
    try:
        ids = items["item"].cast(kind).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"ids of items must be {kind}, as in training: {error}") from None
    if ids.null_count:
        raise InputError("an item without an id cannot be served")
    if pc.count_distinct(ids).as_py() < len(ids):
        raise InputError("items name an id twice")
    return items.set_column(items.column_names.index("item"), "item", ids)


def told(given: pa.Table, catalogue: pa.Table) -> pa.Table:
    """The columns that count: those of the catalogue but `count`, which training counted, others of
    texts, and vectors. No others of texts where the catalogue has `text` alone: beside them it
    would stand for all."""
    names = catalogue.column_names
    text_alone = [field.name for field in catalogue.schema if is_text(field)] == ["text"]
    return given.select(
        [
            field.name
            for field in given.schema
            if field.name != "count"
            and (field.name in names or field.name == VECTOR or (is_text(field) and not text_alone))
        ]
    )


def said(rows: Sequence[dict[str, Any]], catalogue: pa.Table) -> tuple[list[pa.Table], np.ndarray]:
    """(a table of the rows of each set of columns, so that what a row does not say stays unsaid,
    those with vectors last; int64 [rows] in which order they stand in `rows`)."""
    places: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(tuple(sorted(row)), []).append(place)
    places = dict(sorted(places.items(), key=lambda group: VECTOR in group[0]))
    tables = []
    for names, some in places.items():
        columns = {name: _column([rows[i][name] for i in some], name, catalogue) for name in names}
        tables.append(given_rows(pa.table(columns), catalogue))
    return tables, np.argsort(np.concatenate(list(places.values())))


def _has_vector(table: pa.Table) -> bool:
    return VECTOR in table.column_names


def _column(values: list[Any], name: str, catalogue: pa.Table) -> pa.Array:
    """Values that came one call after another, each in a type of its own that the catalogue takes;
    of a column that the catalogue does not have texts alone count, as lists of them."""
    if name not in catalogue.column_names and name != VECTOR:
        lists = [[v] if isinstance(v, str) else v for v in values]
        texts = [v if isinstance(v, list) and _all_texts(v) else None for v in lists]
        return pa.array(texts, pa.list_(pa.string()))
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        if name == VECTOR:
            raise InputError("column 'vector' of items must hold lists of numbers") from None
        kind = catalogue.schema.field(name).type
        return pa.concat_arrays([_cast(_alone(v, name, kind), name, kind) for v in values])


def _alone(value: Any, name: str, kind: pa.DataType) -> pa.Array:
    try:
        return pa.array([value])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(f"column {name!r} of items must be {kind}: {error}") from None


def _all_texts(values: list[Any]) -> bool:
    return all(value is None or isinstance(value, str) for value in values)


def _described(given: pa.Table, known: pa.Array, catalogue: pa.Table) -> pa.Table:
    """The given rows with every column of the catalogue: what is not said again of a known item
    stays, and what is not said of a new one is null. Other columns are kept behind them."""
    columns = {"item": given["item"]}
    for field in catalogue.schema:
        if field.name == "count":
            columns["count"] = pc.fill_null(catalogue["count"].take(known), 0)
        elif field.name not in columns:
            columns[field.name] = (
                _cast(given[field.name], field.name, field.type)
                if field.name in given.column_names
                else catalogue[field.name].take(known)
            )
    return pa.table({**{name: given[name] for name in given.column_names}, **columns})


def _cast(column: Any, name: str, kind: pa.DataType) -> Any:
    """An array, or one in chunks, in another type."""
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"column {name!r} of items must be {kind}: {error}") from None


def _catalogue(before: pa.Table, described: pa.Table, place_N: np.ndarray) -> pa.Table:
    """The catalogue with the described items at their places."""
    size = max(before.num_rows, int(place_N.max()))
    source = np.arange(size)
    source[place_N - 1] = before.num_rows + np.arange(len(place_N))
    both = pa.concat_tables([before, described.select(before.column_names)])
    return both.take(int_array(source))
