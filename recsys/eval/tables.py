"""Results as tables for a person, on standard output."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from recsys.checkpoint import read_config, read_split
from recsys.data.sequences import SequenceDataset
from recsys.retrieval.retriever import Recommendations, Retriever

COUNTS = ("users", "items", "interactions")


def _console() -> Console:
    """Prints names as they are: an id or title that looks like markup is none."""
    return Console(highlight=False, markup=False, emoji=False)


def evaluation(result: dict[str, Any]) -> None:
    """The model beside its baselines, with what the numbers mean above them."""
    console = _console()
    data, split, protocol = result["data"], result["split"], result["protocol"]
    console.print(
        f"{data['name']}: {data['users']:,} users, {data['items']:,} items,"
        f" {data['interactions']:,} interactions, fingerprint {data['fingerprint'][:12]}",
        soft_wrap=True,
    )
    refit = "on train and valid (refit)" if protocol["refit"] else "on train"
    if source := protocol.get("transfer_from"):
        refit = f"on {source} alone (transfer)"
    through = ", through the index" if protocol["through"] == "index" else ""
    who = "sessions" if split["kind"] == "sessions" else "users"
    console.print(
        f"{split['part']} of {split['kind']}: {result['targets']:,} targets of {result['users']:,}"
        f" {who}{_left_out(split)}; trained {refit}; full ranking{through}, ties against the model,"
        f" seen items {'masked' if protocol['seen'] == 'mask' else 'kept'}",
        soft_wrap=True,
    )
    console.print(_beside_baselines(result["model"], result))
    if cold := result.get("cold"):
        console.print(f"the {cold['targets']:,} targets that training never saw, alone:")
        console.print(_beside_baselines(result["model"], cold))
    if "run" in result:
        console.print(f"run folder: {result['run']}", soft_wrap=True)


def _beside_baselines(model: str, result: dict[str, Any]) -> Table:
    table = Table("")
    for column in (model, "95 % interval", *result["baselines"]):
        table.add_column(Text(column), justify="right")
    for name, found in result["metrics"].items():
        baselines = (f"{metrics[name]:.4f}" for metrics in result["baselines"].values())
        interval = "{:.4f} – {:.4f}".format(*found["ci95"])
        value = Text(f"{found['value']:.4f}", "bold")
        table.add_row(name, value, Text(interval, "dim"), *baselines)
    return table


def _left_out(split: dict[str, Any]) -> str:
    """What a split could not ask about, in words."""
    parts = []
    if split.get("users_train_only"):
        parts.append(f"{split['users_train_only']:,} users only train")
    new = split.get(f"{split['part']}_targets_without_history")
    if new:
        parts.append(f"{new:,} targets without a history left out")
    if split.get("targets_never_trained"):
        parts.append(f"{split['targets_never_trained']:,} targets that training never saw")
    return f" ({', '.join(parts)})" if parts else ""


def comparison(result: dict[str, Any]) -> None:
    """Runs side by side; differences to the first with their intervals, marked where clear of 0."""
    console = _console()
    table = Table(title=f"{result['data']['name']}, {result['users']:,} users, test")
    table.add_column("")
    for row in result["runs"]:
        name = row["run"] + (" (refit)" if row["refit"] else "")
        table.add_column(Text(name), justify="right", overflow="fold")
    for name in result["runs"][0]["metrics"]:
        table.add_row(name, *(f"{row['metrics'][name]['value']:.4f}" for row in result["runs"]))
        differences = (row.get("difference_to_first") for row in result["runs"])
        table.add_row(
            "",
            *(
                _difference(found[name]) if found else Text("difference:", "dim")
                for found in differences
            ),
        )
    console.print(table)


def _difference(value: dict[str, Any]) -> Text:
    low, high = value["ci95"]
    text = f"{value['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    return Text(text, "bold" if low > 0 or high < 0 else "")


def description(facts: dict[str, Any]) -> None:
    """Facts about a data set, one a line; nested ones indented."""
    pairs(facts)


def pairs(facts: dict[str, Any]) -> None:
    """Names and values."""
    console = _console()
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if isinstance(value, dict):
            inner = "  ".join(f"{key} {_plain(part)}" for key, part in value.items())
            table.add_row(name, inner)
        else:
            table.add_row(name, _plain(value))
    console.print(table)


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list):  # a range
        return " – ".join(map(_plain, value))
    return str(value)


def sources(result: dict[str, Any]) -> None:
    """Named sources and where their files are."""
    console = _console()
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("what")
    table.add_column("files", overflow="fold")
    for source in result["sources"]:
        counts = [f"{source[name]:,} {name}" for name in COUNTS if source.get(name)]
        what = ": ".join(filter(None, [source["title"], ", ".join(counts)]))
        table.add_row(source["name"], what, source.get("found") or "to download")
    console.print(table)
    console.print(
        "Or a path: CSV, TSV, JSON lines, Parquet, sequence text, .gz, a folder of parts."
    )


def kernels(result: dict[str, Any]) -> None:
    """What runs each kernel on each device."""
    console = _console()
    versions = ", ".join(
        f"{name} {version or 'not installed'}" for name, version in result["versions"].items()
    )
    console.print(f"{versions}; {result['threads']} threads; {result['dtype']} tensors")
    for device in result["devices"]:
        table = Table(title=f"{device['device']}: {device['name']}", title_justify="left")
        table.add_column("kernel", no_wrap=True)
        table.add_column("runs on", no_wrap=True)
        table.add_column("because")
        table.add_column("could run on")
        for row in device["ops"]:
            could = ", ".join(row["available"])
            table.add_row(row["op"], row["backend"], row["reason"], could)
        console.print(table)


def catalogue(result: dict[str, Any]) -> None:
    """Models, losses or recipes with their settings."""
    console = _console()
    (entries,) = result.values()
    for entry in entries:
        console.print(Text.assemble((entry["name"], "bold"), "  ", entry["title"]))
        if entry.get("paper"):
            console.print(f"  {entry['paper']}", style="dim")
        if entry.get("good_at"):
            console.print(f"  good at: {entry['good_at']}")
            console.print(f"  an event costs: {entry['cost']}")
        if isinstance(entry["settings"], list):
            for setting in entry["settings"]:
                console.print(f"  {setting['name']} = {setting['default']}  ({setting['type']})")
        else:
            for section in ("model", "loss", "trainer"):
                values = entry["settings"][section].items()
                console.print(
                    "  " + "  ".join(f"{section}.{name}={value}" for name, value in values)
                )


def index(result: dict[str, Any]) -> None:
    """What an index was measured to be."""
    pairs(result)


def export(result: dict[str, Any]) -> None:
    """What was written; and what int8 costs, where it was asked for."""
    pairs({name: value for name, value in result.items() if name != "test"})
    if "test" in result:
        table = Table("test")
        for name in result["test"]:
            table.add_column(name, justify="right")
        for metric in result["test"]["float"]:
            table.add_row(metric, *(f"{found[metric]:.4f}" for found in result["test"].values()))
        _console().print(table)


def recommendations(result: dict[str, Any]) -> None:
    """Recommended items, best first."""
    console = _console()
    if result["unknown"]:
        console.print("not in the catalogue, skipped: " + ", ".join(map(str, result["unknown"])))
    if result["fallback"]:
        console.print(f"no known item in the history: answered by {result['fallback']}")
    table = Table()
    for column in ("", "item", "title", "score"):
        justify: JustifyMethod = "right" if column in ("", "score") else "left"
        table.add_column(column, justify=justify, no_wrap=column == "item")
    for rank, found in enumerate(result["items"], start=1):
        table.add_row(str(rank), str(found["item"]), found["title"] or "", f"{found['score']:.3f}")
    console.print(table)
    if result["short"]:
        console.print(result["short"])


def examples(run: Path, dataset: SequenceDataset, users: int = 3) -> None:
    """What a few users chose last and what the run would show them next."""
    console = _console()
    # Exact: an index may still be that of the weights before this training.
    retriever = Retriever.load(run, index="exact")
    masked = read_split(run, read_config(run)).seen_items == "mask"
    for user in np.unique(np.linspace(0, len(dataset) - 1, users + 2).astype(int)[1:-1]):
        history, times = retriever.vocab.decode(dataset[user]), None
        if dataset.timestamps is not None:
            times = dataset.timestamps[dataset.offsets[user] : dataset.offsets[user + 1]].tolist()
        found = retriever.recommend(history, k=3, times=times, exclude_seen=masked)
        titles = retriever.titles(history[-3:])
        console.print(f"\nuser {dataset.users[int(user)].as_py()} chose last:", style="bold")
        for item, title in zip(history[-3:], titles, strict=True):
            console.print(f"   {title or item}")
        console.print("   and would be shown:")
        for rank, item, title in _ranked(found):
            console.print(f"   {rank}. {title or item}")


def _ranked(found: Recommendations) -> list[tuple[int, Any, str | None]]:
    titles = found.titles or [None] * len(found.items)
    return [
        (i, item, title) for i, (item, title) in enumerate(zip(found.items, titles, strict=True), 1)
    ]
