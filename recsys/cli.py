"""The recsys command: parse, call, print. A heavy import waits for the command that needs it."""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal

import typer

from recsys import options
from recsys.data_commands import data_app
from recsys.errors import InputError, Interrupted, WorkError
from recsys.output import reporter_of_terminal, show

app = typer.Typer(
    help="Sequential recommendation: from a raw interaction log to a retriever inside a service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")


@app.command()
def train(
    model: Annotated[str | None, typer.Option(help="One of `recsys models`.")] = None,
    data: Annotated[str | None, typer.Option(metavar="DATA", help="As for `data info`.")] = None,
    recipe: Annotated[str | None, typer.Option(help="One of `recsys recipes`.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/MODEL-DATA if not given.")
    ] = None,
    settings: options.Settings = [],  # noqa: B006 - typer copies it
    config: Annotated[Path | None, typer.Option(help="A .toml or .json file of settings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Train once more on train and valid together.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same run.")] = None,
    device: options.Device = "auto",
    user_column: options.UserColumn = None,
    item_column: options.ItemColumn = None,
    time_column: options.TimeColumn = None,
    item_vectors: Annotated[
        str | None, typer.Option(metavar="PATH", help="As in model.item_vectors, for text models.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Train a model, evaluate it on the test split and leave a run folder."""
    from recsys import recipes, run
    from recsys.config import merge, parse_settings, read_settings
    from recsys.eval import tables
    from recsys.eval.pictures import plot_training

    columns = {"user_column": user_column, "item_column": item_column, "time_column": time_column}
    tree = merge(
        read_settings(config) if config else {},
        parse_settings(settings),
        {"data": {name: value for name, value in columns.items() if value is not None}},
        {} if item_vectors is None else {"model": {"item_vectors": item_vectors}},
    )
    reporter = reporter_of_terminal()
    job = run.plan(
        model,
        data,
        out,
        tree,
        base=recipes.recipe(recipe) if recipe else None,
        seed=seed,
        refit=refit,
        resume=resume,
        reporter=reporter,
    )
    result = run.train_run(
        job.config,
        job.dataset,
        job.folder,
        job.run,
        resume=resume,
        device=device,
        reporter=reporter,
        command=sys.argv,
    )
    if not run.is_main_process():
        return
    plot_training(job.run)
    show({**result, "run": str(job.run)}, as_json, tables.evaluation)
    if not as_json:
        tables.examples(job.run, job.dataset)


@app.command()
def pretrain(
    data: Annotated[
        list[str], typer.Option(metavar="DATA", help="A data set with texts; give several.")
    ],
    out: Annotated[Path, typer.Option(help="The run folder, which model.encoder=RUN starts from.")],
    model: Annotated[str, typer.Option(help="A model that reads texts.")] = "recformer",
    settings: options.Settings = [],  # noqa: B006 - typer copies it
    config: Annotated[Path | None, typer.Option(help="A .toml or .json file of settings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same run.")] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Train a model of texts on several data sets at once, for others to start from."""
    from recsys import run
    from recsys.config import merge, parse_settings, read_settings
    from recsys.eval import tables

    tree = merge(read_settings(config) if config else {}, parse_settings(settings))
    result = run.pretrain_run(
        *(model, data, out, tree),
        seed=seed,
        resume=resume,
        device=device,
        reporter=reporter_of_terminal(),
        command=sys.argv,
    )
    if run.is_main_process():
        show({**result, "run": str(out)}, as_json, tables.evaluation)


@app.command("eval")
def evaluate(
    folder: options.RunArgument,
    part: Annotated[
        Literal["valid", "test"], typer.Option("--split", help="Which targets.")
    ] = "test",
    ks: options.Ks = "5,10,20",
    seen: options.Seen = None,
    through: Annotated[
        Literal["exact", "index"],
        typer.Option(help="Rank every item, or take the index's answers."),
    ] = "exact",
    data: options.Moved = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Ranking metrics of a run over the full catalogue, beside the baselines."""
    from recsys.data.sequences import SequenceDataset
    from recsys.eval import tables
    from recsys.eval.report import evaluate_run

    dataset = SequenceDataset.load(data) if data else None
    numbers = _numbers(ks, "--k")
    result = evaluate_run(folder, part, numbers, seen, through, dataset=dataset, device=device)
    show(result, as_json, tables.evaluation)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN RUN …", help="Run folders.")],
    ks: options.Ks = "5,10,20",
    seen: options.Seen = None,
    data: options.Moved = None,
    as_json: options.Json = False,
) -> None:
    """Test metrics of several runs on the same data, with paired differences to the first."""
    from recsys.data.sequences import SequenceDataset
    from recsys.eval import tables
    from recsys.eval.report import compare_runs

    dataset = SequenceDataset.load(data) if data else None
    result = compare_runs(folders, _numbers(ks, "--k"), seen, dataset=dataset)
    show(result, as_json, tables.comparison)


@app.command()
def index(
    folder: options.RunArgument,
    kind: Annotated[
        str, typer.Option("--type", help="flat, hnsw, ivf, ivfpq, sq, or auto: by size.")
    ] = "auto",
    as_json: options.Json = False,
) -> None:
    """Build the FAISS index of a run and measure it against exact search."""
    from recsys.eval import tables
    from recsys.retrieval.index import build_run_index

    show(build_run_index(folder, kind), as_json, tables.index)


@app.command()
def export(
    folder: options.RunArgument,
    form: Annotated[
        Literal["onnx", "torch"], typer.Option("--format", help="ONNX, or torch.export's .pt2.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="RUN/export-FORMAT if not given.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Linear layers in int8 as well, and what that costs.")
    ] = False,
    data: options.Moved = None,
    as_json: options.Json = False,
) -> None:
    """Write the query encoder for other programs, checked against the model, and its items."""
    from recsys.data.sequences import SequenceDataset
    from recsys.eval import tables
    from recsys.export import export_run

    dataset = SequenceDataset.load(data) if data else None
    show(export_run(folder, form, out, int8, dataset=dataset), as_json, tables.export)


@app.command()
def recommend(
    folder: options.RunArgument,
    history: Annotated[
        str | None, typer.Option(metavar="ID,ID,…", help="Oldest first; quote ids with commas.")
    ] = None,
    times: Annotated[
        str | None, typer.Option(metavar="T,T,…", help="Of the history, in the unit of the data.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="For every user of the data.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Parquet file for --all-users.")] = None,
    data: options.Moved = None,
    through: Annotated[
        Literal["auto", "exact", "index"], typer.Option(help="How items are found.")
    ] = "auto",
    seen: options.Seen = None,
    as_json: options.Json = False,
) -> None:
    """Recommend items for a history, or for all users into a Parquet file."""
    import csv

    from recsys.checkpoint import read_config, read_split
    from recsys.eval import tables
    from recsys.retrieval import all_users as batch
    from recsys.retrieval.retriever import Retriever

    retriever = Retriever.load(folder, index=through)
    if history is not None and not all_users and out is None and data is None:
        try:
            rows = list(csv.reader(history.splitlines(), skipinitialspace=True))
        except csv.Error as error:
            raise InputError(f"--history cannot be read: {error}") from None
        words = (text.strip() for row in rows for text in row)  # an id may hold a comma
        raw = [retriever.vocab.parse(text) for text in words if text]
        moments = None if times is None else _numbers(times, "--times")
        masked = (seen or read_split(folder, read_config(folder)).seen_items) == "mask"
        found = retriever.recommend(raw, k, times=moments, exclude_seen=masked)
        show(batch.as_record(found), as_json, tables.recommendations)
    elif history is None and times is None and all_users and out is not None:
        if report := batch.recommend_all(folder, retriever, out, k, data, seen, through):
            show(report, as_json, tables.pairs)
    else:
        raise InputError(
            "recommend takes --history ID,ID,… (and --times), or --all-users --out FILE.parquet"
            " (and --data)"
        )


@app.command()
def serve(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN [RUN …]", help="Run folders; the first is asked.")
    ],
    port: Annotated[int, typer.Option(help="TCP port; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML: lists of API keys, read and admin.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keeps changes across restarts.")
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="RECSYS_REDIS", help="Keeps states of users."),
    ] = None,
    max_users: Annotated[int, typer.Option(help="States kept in the process.")] = 20_000,
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How often to look for newer runs.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer.")] = 10.0,
    max_waiting: Annotated[int, typer.Option(help="Requests at work at a time.")] = 256,
    max_body: Annotated[int, typer.Option(help="Bytes of a request.")] = 1_000_000,
    threads: Annotated[int, typer.Option(help="Torch's threads.")] = 1,
    log_users: Annotated[bool, typer.Option("--log-users", help="Name users in the log.")] = False,
) -> None:
    """Answer over HTTP, with a page to try the models on."""
    from recsys.retrieval.service import ServiceConfig
    from recsys.retrieval.service import serve as serve_runs

    config = ServiceConfig(
        host=host,
        port=port,
        keys=keys,
        journal=journal,
        redis=redis,
        max_users=max_users,
        watch_s=watch,
        timeout_s=timeout,
        max_waiting=max_waiting,
        max_body=max_body,
        threads=threads,
        log_users=log_users,
    )
    serve_runs(folders, config)


@app.command()
def models(as_json: options.Json = False) -> None:
    """The models, their settings and papers."""
    from recsys.eval import tables
    from recsys.models.base import model_list

    show({"models": model_list()}, as_json, tables.catalogue)


@app.command()
def losses(as_json: options.Json = False) -> None:
    """The losses, their settings and papers."""
    from recsys.eval import tables
    from recsys.training.losses import loss_list

    show({"losses": loss_list()}, as_json, tables.catalogue)


@app.command()
def recipes(as_json: options.Json = False) -> None:
    """The recipes: settings with measured numbers."""
    from recsys import recipes as folder
    from recsys.eval import tables

    show({"recipes": folder.recipe_list()}, as_json, tables.catalogue)


@app.command()
def kernels(as_json: options.Json = False) -> None:
    """What runs each kernel on this machine, and why."""
    from recsys.eval import tables
    from recsys.kernels.survey import survey

    show(survey(), as_json, tables.kernels)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit code 0: done, 1: the work failed, 2: wrong usage or bad input."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may know fewer characters than titles
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments)
    except InputError as error:
        _fail(error, 2)
    except (WorkError, OSError) as error:
        _fail(error, 1)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(1)


def _fail(error: Exception, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes whole numbers, as in 5,10,20; got {text!r}") from None


if __name__ == "__main__":
    main()
