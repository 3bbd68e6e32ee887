"""Data sets by name: what they are called, where their files lie, and where they come from."""

import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.data import amazon, movielens, sample
from recsys.data.download import download, fetched_alone
from recsys.data.formats import source_from_path
from recsys.data.interactions import Columns, Source
from recsys.errors import InputError, WorkError, nearest
from recsys.whole import written_whole

Report = Callable[[str], None]
GROUPLENS = "https://files.grouplens.org/datasets/movielens"
AMAZON = {
    2014: "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles",
    2018: "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
    2023: "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw",
}
SCIENTIFIC = ("Scientific_sequences.txt", "Scientific.text", "Scientific.item2index")
"""The files of amazon-scientific."""
DEEPEST = 3
"""Levels of folders under $RECSYS_DATA that are searched for files."""


@dataclass(frozen=True)
class MovieLens:
    """A MovieLens release: its folder, the files in it and its published size."""

    folder: str
    ratings: str
    films: str
    title: str
    users: int
    items: int
    interactions: int


MOVIELENS = {
    "movielens-100k": MovieLens(
        "ml-100k", "u.data", "u.item", "MovieLens 100K, 1998", 943, 1_682, 100_000
    ),
    "movielens-1m": MovieLens(
        "ml-1m", "ratings.dat", "movies.dat", "MovieLens 1M, 2003", 6_040, 3_706, 1_000_209
    ),
    "movielens-20m": MovieLens(
        "ml-20m", "ratings.csv", "movies.csv", "MovieLens 20M, 2016", 138_493, 26_744, 20_000_263
    ),
    "movielens-latest-small": MovieLens(
        "ml-latest-small",
        "ratings.csv",
        "movies.csv",
        "MovieLens, small, changing",
        671,
        9_066,
        100_004,
    ),
}


def resolve(text: str, *, report: Report, columns: Columns = Columns()) -> Source:
    """The source that a name or a path stands for; its files are there when this returns.

    Raises InputError for a word that is neither, WorkError where a download fails.
    """
    if text == "sample":
        reviews, meta = sample.files(cache_dir() / "sample", report)
        return amazon.source("sample", 2018, reviews, meta, report)
    if text in MOVIELENS:
        return _movielens(text, report)
    if text == "amazon-scientific":
        return _scientific(text)
    if found := re.fullmatch(r"amazon(2014|2018|2023)?(?::([A-Za-z0-9_]+))?", text):
        return _amazon(text, int(found[1] or 2014), found[2], report)
    path = Path(text).expanduser()
    if path.exists():
        return source_from_path(path, columns)
    known = [
        "sample",
        *MOVIELENS,
        "amazon-scientific",
        *_amazon_names(),
        "amazon2018:NAME",
        "amazon2023:NAME",
    ]
    raise InputError(
        f"{text!r} is neither a file or folder nor the name of a source{nearest(text, known)};"
        " `recsys data list` names them, and --data sample needs no download"
    )


def names() -> list[dict[str, Any]]:
    """What `recsys data list` shows; `found` is the folder of the files, None without them."""
    entries: list[dict[str, Any]] = [
        {"name": "sample", "title": "a store made by code from a seed", "found": "built in"}
    ]
    for name, release in MOVIELENS.items():
        ratings = _find(release.ratings, release.folder)
        if ratings is None and name == "movielens-1m":
            ratings = _find("ml-1m_sas_sequences.txt", "ml-1m")
        entries.append(
            {
                "name": name,
                "title": release.title,
                "users": release.users,
                "items": release.items,
                "interactions": release.interactions,
                "found": str(ratings.parent) if ratings else None,
            }
        )
    sequences = _find(SCIENTIFIC[0])
    entries.append(
        {
            "name": "amazon-scientific",
            "title": "Amazon 2018, Industrial and Scientific, UniSRec's 5-core",
            "users": 8_442,
            "items": 4_385,
            "interactions": 59_427,
            "found": str(sequences.parent) if sequences else None,
        }
    )
    for name, category in _amazon_names().items():
        reviews = _find(f"reviews_{category}_5.json")
        title = f"Amazon 2014 {category.replace('_', ' ')}, 5-core"
        entries.append(
            {"name": name, "title": title, "found": str(reviews.parent) if reviews else None}
        )
    entries += [
        {
            "name": "amazon2018:NAME",
            "title": "Amazon 2018, NAME as in Gift_Cards, 5-core",
            "found": None,
        },
        {"name": "amazon2023:NAME", "title": "Amazon 2023, NAME as in All_Beauty", "found": None},
    ]
    return entries


def cache_dir() -> Path:
    """Where downloads and prepared sources are: $RECSYS_CACHE, or the platform's cache folder."""
    if given := os.environ.get("RECSYS_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "recsys"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "recsys"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys"


def _amazon_names() -> dict[str, str]:
    keys = {f"amazon:{key}": category for key, category in amazon.CATEGORIES_2014.items()}
    return {"amazon": "Beauty", **keys}


def _amazon(name: str, year: int, category: str | None, report: Report) -> Source:
    if year == 2014:
        key = (category or "beauty").lower()
        by_key = amazon.CATEGORIES_2014
        full = by_key.get(key) or {full.lower(): full for full in by_key.values()}.get(key)
        if full is None:
            raise InputError(
                f"unknown category in {name!r}{nearest(key, by_key)} ({', '.join(by_key)})"
            )
        files = (f"reviews_{full}_5.json.gz", f"meta_{full}.json.gz")
        places = ("", "")
    else:
        if category is None:
            raise InputError(f"{name!r} needs a category, as in amazon{year}:All_Beauty")
        reviews = f"{category}_5.json.gz" if year == 2018 else f"{category}.jsonl.gz"
        meta = f"meta_{category}.json.gz" if year == 2018 else f"meta_{category}.jsonl.gz"
        files = (reviews, meta)
        places = (
            ("categoryFilesSmall/", "metaFiles2/")
            if year == 2018
            else ("review_categories/", "meta_categories/")
        )
    reviews_file = _find(files[0].removesuffix(".gz"))
    meta_file = _find(files[1].removesuffix(".gz"))
    folder, wanted = cache_dir() / f"amazon-{year}", " and ".join(files)
    reviews_url, meta_url = (
        f"{AMAZON[year]}/{place}{file}" for place, file in zip(places, files, strict=True)
    )
    if reviews_file is None:
        reviews_file = _fetched(name, reviews_url, folder / files[0], wanted, report)
    # Reviews of the user's own may have no titles; those downloaded have, if not at the first try.
    if meta_file is None and reviews_file == folder / files[0]:
        meta_file = _fetched(name, meta_url, folder / files[1], wanted, report)
    return amazon.source(name, year, reviews_file, meta_file, report)


def _scientific(name: str) -> Source:
    """UniSRec's Scientific: sequences by number, texts by ASIN, and the map between them."""
    sequences, texts, numbers = (_find(file) for file in SCIENTIFIC)
    if sequences is None or texts is None or numbers is None:
        raise WorkError(
            f"{name} has no publisher to download from: put {', '.join(SCIENTIFIC)} (also with .gz"
            f" behind) in $RECSYS_DATA or {cache_dir()}. --data sample needs no download."
        )
    return amazon.numbered_source(name, sequences, texts, numbers)


def _movielens(name: str, report: Report) -> Source:
    release = MOVIELENS[name]
    ratings = _find(release.ratings, release.folder)
    films = _find(release.films, release.folder)
    if ratings is None and name == "movielens-1m":
        parts = {
            "sequences": _find("ml-1m_sas_sequences.txt", "ml-1m"),
            "users": _find("sas_to_original_users.txt", "ml-1m"),
            "items": _find("sas_to_original_items.txt", "ml-1m"),
        }
        found = {key: path for key, path in parts.items() if path is not None}
        if len(found) == len(parts):
            return movielens.mapped_source(
                name, {**found, **({"films": films} if films else {})}, report
            )
    if ratings is None:
        ratings, films = _unpacked(name, release, report)
    return movielens.source(name, ratings, films, report)


def _unpacked(name: str, release: MovieLens, report: Report) -> tuple[Path, Path]:
    """(ratings, films) of a release, from its publisher's archive."""
    folder = cache_dir() / release.folder
    archive = cache_dir() / f"{release.folder}.zip"
    sum_file = archive.with_suffix(".zip.md5")
    url = f"{GROUPLENS}/{release.folder}.zip"
    wanted = f"{release.ratings} and {release.films} into a folder {release.folder}"
    with fetched_alone(folder):
        _fetched(name, f"{url}.md5", sum_file, wanted, report)
        checksum = re.search(r"\b[0-9a-f]{32}\b", sum_file.read_text(errors="replace"))
        _fetched(name, url, archive, wanted, report, checksum[0] if checksum else None)
        # Ratings last: where they are found, nothing is fetched again.
        films = _extract(archive, folder, release.films)
        ratings = _extract(archive, folder, release.ratings)
        archive.unlink()
    return ratings, films


def _find(file: str, folder: str | None = None) -> Path | None:
    """`file` or `file.gz` under $RECSYS_DATA or the cache, in a folder called `folder` if said."""
    roots = [Path(root) for root in [os.environ.get("RECSYS_DATA")] if root] + [cache_dir()]
    for root in roots:
        for depth in range(DEEPEST + 1):
            for suffix in ("", ".gz"):
                pattern = "/".join(["*"] * depth + [file + suffix])
                for path in sorted(root.glob(pattern)):
                    if path.is_file() and folder in (None, path.parent.name):
                        return path
    return None


def _fetched(
    name: str, url: str, target: Path, wanted: str, report: Report, md5: str | None = None
) -> Path:
    """Download a file; where that fails, say which files (`wanted`) to put where by hand."""
    try:
        return download(url, target, md5=md5, report=report)
    except WorkError as error:
        raise WorkError(
            f"{error}\nTo use {name} by hand put {wanted} in $RECSYS_DATA or {cache_dir()}."
            " --data sample needs no download."
        ) from None


def _extract(archive: Path, folder: Path, file: str) -> Path:
    """One expected member of the archive, whole or not at all; other members are not touched."""
    try:
        with (
            written_whole(folder / file) as aside,
            zipfile.ZipFile(archive) as parts,
            parts.open(f"{folder.name}/{file}") as member,
            aside.open("wb") as out,
        ):
            shutil.copyfileobj(member, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WorkError(f"{archive} is not the archive that was expected: {error}") from None
    return folder / file
