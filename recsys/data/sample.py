"""The `sample` source: a store made by code from a seed, in Amazon 2018 format.

Each department of the store is a path of stages (a first kit, then tools, then refills and
upgrades). A shopper follows two or three departments at a time, at a pace of their own (every stage,
or every other one) and with a favourite brand in each, stays with one department for a few purchases,
then turns to another and goes on there where they stopped. What comes next therefore depends on the
last purchase in that department, on the one before it (the pace) and on the brand: more than the last
item tells. Interests change over the two years, items are launched on the way, and one purchase in
eight is a whim.
"""

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20260
VERSION = 1
USERS = 3000
FIRST_DAY = 1_640_995_200  # 2022-01-01, Unix seconds
DAYS = 730
WHIM = 0.12
"""Share of purchases that follow nothing but popularity."""
STAY = 0.72
"""Probability to stay with a department for the next purchase."""
VARIANTS = 2
"""Items of one brand at one stage."""

DEPARTMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Coffee": (
        ("Halden", "Moka & Pine", "Brightwell", "Corvo", "Sundry Roasters"),
        ("Pour-Over Starter Kit", "Paper Filters", "Hand Grinder", "Gooseneck Kettle", "Single Origin Beans",
         "Brewing Scale", "Milk Frother", "Burr Grinder", "Espresso Maker", "Tamper", "Descaler",
         "Barista Machine"),
    ),
    "Hiking": (
        ("Northpeak", "Trailhound", "Ashfold", "Verdant", "Kestrel Ridge"),
        ("Daypack", "Merino Socks", "Trail Shoes", "Water Bottle", "Rain Jacket", "Trekking Poles",
         "Headlamp", "Hiking Boots", "Sleeping Mat", "Camp Stove", "Two-Person Tent", "Touring Backpack"),
    ),
    "Baking": (
        ("Crumb & Co", "Old Mill", "Fennel", "Tartine House", "Levain"),
        ("Mixing Bowls", "Whisk Set", "Loaf Pan", "Bread Flour", "Dough Scraper", "Proofing Basket",
         "Kitchen Thermometer", "Cake Rings", "Piping Set", "Stand Mixer", "Baking Stone", "Pasta Attachment"),
    ),
    "Painting": (
        ("Umber", "Atelier Nord", "Lumen", "Saffron Studio", "Grayling"),
        ("Watercolour Set", "Round Brushes", "Cold-Press Paper", "Masking Tape", "Gouache Tubes",
         "Table Easel", "Acrylic Set", "Stretched Canvas", "Palette Knives", "Oil Paints", "Studio Easel",
         "Varnish"),
    ),
    "Cycling": (
        ("Velora", "Ironwheel", "Pavé", "Switchback", "Loop"),
        ("Helmet", "Tail Light", "Mini Pump", "Bottle Cage", "Cycling Gloves", "Saddle Bag", "Bike Computer",
         "Bib Shorts", "Clipless Pedals", "Cycling Shoes", "Indoor Trainer", "Carbon Wheelset"),
    ),
    "Gardening": (
        ("Greenhollow", "Tilth", "Marrow & Vine", "Sproutwell", "Elmsworth"),
        ("Seed Trays", "Potting Mix", "Hand Trowel", "Watering Can", "Herb Seeds", "Pruning Shears",
         "Raised Bed", "Tomato Cages", "Compost Bin", "Drip Irrigation Kit", "Grow Light", "Greenhouse"),
    ),
    "Home Audio": (
        ("Tonal", "Resonant", "Hallmark Sound", "Quarterwave", "Osprey Audio"),
        ("In-Ear Headphones", "Audio Cable", "Bookshelf Speakers", "Speaker Stands", "Headphone Amplifier",
         "Open-Back Headphones", "Turntable", "Record Brush", "Phono Preamp", "Subwoofer",
         "Integrated Amplifier", "Streaming Player"),
    ),
    "Yoga": (
        ("Stillwater", "Asana Works", "Lotusleaf", "Evenbreath", "Solace"),
        ("Yoga Mat", "Mat Towel", "Cork Blocks", "Strap", "Bolster", "Foam Roller", "Meditation Cushion",
         "Resistance Bands", "Balance Board", "Pilates Ring", "Wheel", "Inversion Swing"),
    ),
}  # fmt: skip
STYLES = (
    "Classic", "Compact", "Everyday", "Pro", "Light", "Heritage", "Studio", "Essential", "Select",
    "Natural", "Signature", "Slate", "Junior", "Deluxe",
)  # fmt: skip


@dataclass(frozen=True)
class _Store:
    """The catalogue as arrays [department, stage, brand, variant] of item positions, and facts an item."""

    item: np.ndarray
    launch_day: np.ndarray
    """Per item, days after FIRST_DAY; 0 for what was there from the start."""
    appeal: np.ndarray
    """Per item, a positive weight; heavy-tailed."""
    meta: list[dict[str, Any]]


def files(folder: Path, report: Callable[[str], None]) -> tuple[Path, Path]:
    """(reviews, meta) of the sample in `folder`; made where they are missing."""
    reviews = folder / f"Sample_v{VERSION}_5.json.gz"
    meta = folder / f"meta_Sample_v{VERSION}.json.gz"
    if not (reviews.is_file() and meta.is_file()):
        report(f"making the sample store in {folder}")
        records, products = generate()
        folder.mkdir(parents=True, exist_ok=True)
        _write(meta, products)
        _write(reviews, records)
    return reviews, meta


def generate(seed: int = SEED, users: int = USERS) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(reviews in order of time, products), as the lines of an Amazon 2018 release."""
    random = np.random.default_rng(seed)
    store = _make_store(random)
    purchases = []
    for user in range(users):
        purchases += [(time, user, item) for time, item in _shop(random, store)]
    purchases.sort()
    reviews = [
        {
            "overall": float(5 - (item * 7 + user) % 3),
            "verified": True,
            "reviewerID": f"ASMPL{user:05d}",
            "asin": store.meta[item]["asin"],
            "reviewText": f"Bought for {store.meta[item]['category'][1].lower()}.",
            "summary": "As described",
            "unixReviewTime": time,
        }
        for time, user, item in purchases
    ]
    return reviews, store.meta


def _make_store(random: np.random.Generator) -> _Store:
    stages, brands = 12, 5
    shape = (len(DEPARTMENTS), stages, brands, VARIANTS)
    item = np.arange(np.prod(shape)).reshape(shape)
    launch_day = np.where(random.random(item.size) < 0.3, random.integers(30, DAYS, item.size), 0)
    meta = []
    for position, (department, stage, brand, _) in enumerate(np.ndindex(shape)):
        name, (makers, products) = list(DEPARTMENTS.items())[department]
        style = STYLES[(department * 5 + stage * 3 + brand * 7 + position) % len(STYLES)]
        meta.append(
            {
                "asin": f"B0SMPL{position + 1:04d}",
                "title": f"{makers[brand]} {style} {products[stage]}",
                "brand": makers[brand],
                "category": ["Sample Store", name, products[stage]],
                "description": [f"{products[stage]} by {makers[brand]}, for {name.lower()}."],
                "price": f"${8 + stage * 11 + brand * 3}.90",
            }
        )
    return _Store(item, launch_day, random.pareto(1.5, item.size) + 0.3, meta)


def _shop(random: np.random.Generator, store: _Store) -> list[tuple[int, int]]:
    """(Unix time, item) of one shopper's purchases, oldest first."""
    departments, stages, brands, _ = store.item.shape
    active = list(random.choice(departments, size=random.integers(2, 4), replace=False))
    brand = random.integers(brands, size=departments)
    pace = random.integers(1, 3, size=departments)
    reached = random.integers(-2, 2, size=departments)
    moment = random.uniform(0, DAYS * 0.6)
    here = active[0]
    bought: list[tuple[int, int]] = []
    seen: set[int] = set()
    for _ in range(5 + min(35, int(random.geometric(1 / 8)))):
        moment += random.exponential(12.0) + 0.01
        if moment >= DAYS:
            break
        if random.random() > STAY:
            here = active[(active.index(here) + 1) % len(active)]
        if random.random() < 0.03:  # an interest is given up for a new one
            active[active.index(here)] = here = int(random.integers(departments))
            active = list(dict.fromkeys(active))
        on_sale = store.launch_day <= moment
        if random.random() < WHIM:
            candidates = store.item.reshape(-1)
        else:
            reached[here] = max(reached[here] + pace[here], 0)
            if reached[here] >= stages:  # the path is done: another department takes its place
                reached[here] = 0
                brand[here] = random.integers(brands)
            if random.random() < 0.1:
                brand[here] = random.integers(brands)
            candidates = store.item[here, reached[here], brand[here]]
        weight = store.appeal[candidates] * on_sale[candidates]
        weight = weight * [position not in seen for position in candidates]
        if weight.sum() == 0:
            continue
        chosen = int(random.choice(candidates, p=weight / weight.sum()))
        seen.add(chosen)
        bought.append((FIRST_DAY + int(moment * 86_400), chosen))
    return bought


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    """JSON lines, gzipped with no time in the header, so that a seed gives the same bytes."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(gzip.compress(lines.encode(), mtime=0))
    os.replace(aside, path)
