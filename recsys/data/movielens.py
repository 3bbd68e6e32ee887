"""MovieLens releases, in the files of GroupLens."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from recsys.data.files import text_of
from recsys.data.interactions import Columns, Source
from recsys.errors import InputError

Report = Callable[[str], None]

GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
RATINGS = ("user", "item", "rating", "timestamp")
COLUMNS = Columns("user", "item", "timestamp")


def source(name: str, ratings: Path, items: Path | None, report: Report) -> Source:
    """Ratings as a log; every rating is an interaction, whatever its value."""
    if items is None:
        report(f"{name}: no file of films beside {ratings.name}, items have no titles")
    headed = ratings.name.startswith("ratings.csv")
    return Source(
        name,
        (ratings,),
        delimiter="\t" if ratings.name.startswith("u.data") else "," if headed else "::",
        header=None if headed else RATINGS,
        columns=Columns("userId", "movieId", "timestamp") if headed else COLUMNS,
        read_items=None if items is None else lambda: read_items(items),
        item_files=() if items is None else (items,),
    )


def mapped_source(name: str, files: dict[str, Path], report: Report) -> Source:
    """MovieLens-1M from a sequence file with other ids and the maps back to the original ones."""
    report(
        f"{name}: no ratings.dat, using {files['sequences'].name} with the original ids put back"
    )
    user_map, item_map = (_id_map(files[key]) for key in ("users", "items"))
    users, items = [], []
    for number, line in enumerate(text_of(files["sequences"], "utf-8").splitlines(), start=1):
        try:
            user, *history = map(int, line.split())
            users += [user_map[user]] * len(history)
            items += [item_map[item] for item in history]
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{files['sequences']}, line {number} is not `user item item …` of ids in"
                f" {files['users'].name} and {files['items'].name}: {error}"
            ) from None
    films = files.get("films")
    return Source(
        name,
        table=pa.table({"user": users, "item": items}),
        columns=Columns("user", "item", None),
        read_items=None if films is None else lambda: read_items(films),
        item_files=() if films is None else (films,),
    )


def read_items(path: Path) -> pa.Table:
    """item (int64), title, categories and text from movies.csv, movies.dat or u.item.

    InputError where a line is not one of a film.
    """
    try:
        return _films(path)
    except (ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{path} is not a file of films: {error}") from None


def _films(path: Path) -> pa.Table:
    name = path.name.removesuffix(".gz")
    rows = []
    if name == "movies.csv":
        records = csv.reader(io.StringIO(text_of(path, "utf-8")))
        next(records, None)
        rows = [(number, title, genres.split("|")) for number, title, genres in records]
    elif name == "movies.dat":
        lines = (line.split("::") for line in text_of(path, "latin-1").splitlines() if line)
        rows = [(number, title, genres.split("|")) for number, title, genres in lines]
    else:
        for line in text_of(path, "latin-1").splitlines():
            fields = line.split("|")
            flags = zip(GENRES_100K, fields[5:], strict=False)
            rows.append((fields[0], fields[1], [genre for genre, flag in flags if flag == "1"]))
    categories = [
        [genre for genre in genres if not genre.startswith("(no ")] for *_, genres in rows
    ]
    titles = [_readable(title) for _, title, _ in rows]
    return pa.table(
        {
            "item": pa.array([int(number) for number, *_ in rows], type=pa.int64()),
            "title": titles,
            "categories": pa.array(categories, type=pa.list_(pa.string())),
            "text": [
                ". ".join(filter(None, (title, ", ".join(genres))))
                for title, genres in zip(titles, categories, strict=True)
            ],
        }
    )


def _readable(title: str) -> str:
    """`Matrix, The (1999)` as people say it."""
    found = re.fullmatch(r"(.*), (The|A|An)( \(\d{4}\))?", title.strip())
    return f"{found[2]} {found[1]}{found[3] or ''}" if found else title.strip()


def _id_map(path: Path) -> dict[int, int]:
    pairs = (line.split() for line in text_of(path, "utf-8").splitlines() if line)
    try:
        return {int(key): int(value) for key, value in pairs}
    except ValueError as error:
        raise InputError(f"{path} is not two numbers a line: {error}") from None
