"""Arguments and options that several commands share, and those of preparing data."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DataArgument = Annotated[
    str, typer.Argument(metavar="DATA", help="A prepared folder, a source name or a path.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="A setting, as in model.dim=64.")
]
UserColumn = Annotated[str | None, typer.Option(help="Column of user ids.")]
ItemColumn = Annotated[str | None, typer.Option(help="Column of item ids.")]
TimeColumn = Annotated[str | None, typer.Option(help="Column of times.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Seen = Annotated[
    Literal["mask", "keep"] | None,
    typer.Option(help="Take items of the history out of the ranking, or not; else split.seen."),
]
Moved = Annotated[
    Path | None, typer.Option("--data", help="Where the prepared data lies now, if it has moved.")
]
Ks = Annotated[str, typer.Option("--k", metavar="K,K,…", help="Cut-offs of the metrics.")]
Duplicates = Annotated[str | None, typer.Option(help="exact, keep, first, last or consecutive.")]
Sessions = Annotated[
    str | None,
    typer.Option(help="gap:30m, column:NAME or lines, where a user is no sequence."),
]
TestSet = Annotated[
    str | None, typer.Option(metavar="PATH", help="A test set given apart, like the log.")
]
Items = Annotated[
    str | None, typer.Option(metavar="FILE", help="A table of items: ids, titles, other texts.")
]
ItemsIdColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of item ids in --items.")
]
