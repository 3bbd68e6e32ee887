"""recsys data …: look at sources and prepare logs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from recsys import options
from recsys.output import reporter_of_terminal, show

data_app = typer.Typer(help="Look at data sources and prepare logs.", no_args_is_help=True)


@data_app.command("list")
def data_list(as_json: options.Json = False) -> None:
    """Name the sources that can be trained on by name."""
    from recsys.data.sources import names
    from recsys.eval import tables

    show({"sources": names()}, as_json, tables.sources)


@data_app.command("prepare")
def data_prepare(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A source name or a path.")],
    out: Annotated[Path, typer.Option(help="The data set folder to write.")],
    engine: Annotated[
        Literal["duckdb", "spark"], typer.Option(help="What runs the preparation.")
    ] = "duckdb",
    min_user_events: Annotated[int | None, typer.Option(help="Shortest history kept.")] = None,
    min_item_events: Annotated[int | None, typer.Option(help="Rarest item kept.")] = None,
    duplicates: options.Duplicates = None,
    user_column: options.UserColumn = None,
    item_column: options.ItemColumn = None,
    time_column: options.TimeColumn = None,
    sessions: options.Sessions = None,
    test: options.TestSet = None,
    items: options.Items = None,
    items_id_column: options.ItemsIdColumn = None,
    as_json: options.Json = False,
) -> None:
    """Turn a log into a data set folder."""
    from recsys import run
    from recsys.config import from_dict
    from recsys.data.info import describe
    from recsys.data.prepare import DataConfig
    from recsys.eval import tables

    given = {
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "duplicates": duplicates,
        "user_column": user_column,
        "item_column": item_column,
        "time_column": time_column,
        "sessions": sessions,
        "test": test,
        "items": items,
        "items_id_column": items_id_column,
    }
    values = {name: value for name, value in given.items() if value is not None}
    config = from_dict(DataConfig, values, "data")
    dataset = run.prepare(source, out, config, engine=engine, reporter=reporter_of_terminal())
    show(describe(dataset), as_json, tables.description)


@data_app.command("info")
def data_info(
    data: options.DataArgument,
    picture: Annotated[
        Path | None, typer.Option(help="Where to draw the distributions (PNG).")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Counts, lengths, popularity, time range and fingerprint, as a table and a picture."""
    from recsys import run
    from recsys.data.info import describe, plot
    from recsys.data.prepare import DataConfig
    from recsys.eval import tables

    reporter = reporter_of_terminal()
    dataset, folder = run.open_data(data, DataConfig(), reporter.line)
    show(describe(dataset), as_json, tables.description)
    place = picture or folder / "info.png"
    try:
        plot(dataset, place)
    except OSError as error:
        if picture is not None:
            raise
        reporter.line(f"no picture ({error}): name another place with --picture")
    else:
        reporter.line(f"picture: {place}")
