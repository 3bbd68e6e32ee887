"""What a prepared data set holds, as numbers and as a picture."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from recsys.data.sequences import SequenceDataset
from recsys.data.text import without_text
from recsys.errors import InputError
from recsys.whole import written_whole

TEST_FACTS = ("test_users", "items_only_in_test")
_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def describe(dataset: SequenceDataset) -> dict[str, Any]:
    """Facts as JSON values. `repeats`: share of interactions with an item the user had before;
    `items_without_text`: items of which nothing is known in words.

    A data set with a test set of its own adds `test_users` and `items_only_in_test`.
    """
    lengths = np.diff(dataset.offsets)
    counts = np.sort(np.bincount(dataset.items, minlength=dataset.num_items + 1)[1:])[::-1]
    total = len(dataset.items)
    user = np.repeat(np.arange(len(lengths)), lengths)
    pairs = len(np.unique(user * (dataset.num_items + 1) + dataset.items))
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "users": len(lengths),
        "items": dataset.num_items,
        "items_without_text": without_text(dataset.catalogue),
        "interactions": total,
        "density": total / (len(lengths) * dataset.num_items),
        "repeats": 1 - pairs / total,
        "users_shorter_than_3": int((lengths < 3).sum()),
        "history_length": _summary(lengths),
        "item_popularity": {
            **_summary(counts),
            "share_of_top_1_percent": float(counts[: max(1, len(counts) // 100)].sum() / total),
            "share_of_top_10_percent": float(counts[: max(1, len(counts) // 10)].sum() / total),
            "gini": _gini(counts),
        },
        "time_range": _time_range(dataset),
        **({name: dataset.info.get(name) for name in TEST_FACTS} if dataset.test_users else {}),
    }


def plot(dataset: SequenceDataset, path: Path) -> None:
    """Draw history lengths and item popularity into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    lengths = np.diff(dataset.offsets)
    lengths = lengths[lengths > 0]
    edges = np.unique(np.geomspace(1, lengths.max() + 1, 32).astype(int))
    left.hist(lengths, bins=edges if len(edges) > 1 else 10, color="#2a6f97", edgecolor="white")
    left.axvline(np.median(lengths), color="#c1666b", linewidth=1)
    left.annotate(
        f" median {np.median(lengths):g}",
        (np.median(lengths), 0.95),
        xycoords=("data", "axes fraction"),
        color="#c1666b",
        fontsize=8,
    )
    left.set(xscale="log", xlabel="interactions of a user", ylabel="users", title="History length")
    counts = np.sort(np.bincount(dataset.items, minlength=dataset.num_items + 1)[1:])[::-1]
    right.plot(np.arange(1, len(counts) + 1), counts, color="#2a6f97")
    right.set(
        xscale="log",
        yscale="log",
        xlabel="item, by rank",
        ylabel="interactions",
        title="Popularity",
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    figure.suptitle(
        f"{dataset.name}: {len(lengths):,} users, {dataset.num_items:,} items,"
        f" {len(dataset.items):,} interactions",
        fontsize=10,
    )
    with written_whole(path) as aside:
        figure.savefig(aside, dpi=130, format="png")


def _summary(values: np.ndarray) -> dict[str, float]:
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": round(float(values.mean()), 4),
        "p90": float(np.quantile(values, 0.9)),
        "max": int(values.max()),
    }


def _gini(counts: np.ndarray) -> float:
    """0 where all items are equally popular, towards 1 where one has everything."""
    rising = np.sort(counts).astype(np.float64)
    size = len(rising)
    return float(((2 * np.arange(1, size + 1) - size - 1) * rising).sum() / (size * rising.sum()))


def _time_range(dataset: SequenceDataset) -> list[str] | None:
    """First and last time in ISO form, UTC; None without times."""
    if dataset.timestamps is None:
        return None
    unit = dataset.info.get("time_unit")
    if unit not in _SECOND:
        raise InputError(
            f"{dataset.name}: dataset.json is damaged: its time_unit is {unit!r}; prepare it again"
        )
    second = _SECOND[unit]
    ends = (int(dataset.timestamps.min()), int(dataset.timestamps.max()))
    try:
        return [datetime.fromtimestamp(end / second, UTC).isoformat() for end in ends]
    except (ValueError, OverflowError, OSError):  # counters that are no dates
        return [str(end) for end in ends]
