"""The `sample` source: a store made by code from a seed, in Amazon 2018 format.

Each department of the store is a path of stages (a first kit, tools, refills, upgrades) that begins
again at its end. A shopper follows three departments in turn: two or three purchases in one, then
as many in the next. In each they go on from the stage where they stopped, in steps of their own
(one, two or three stages), with a favourite brand there and a price tier. So what comes next
depends on how long they have been where they are, on the last purchase in the department whose turn
it is, often far back, and on the step: much more than the last items alone tell. Interests change
over the two years, items are launched on the way, and one purchase in twelve is a whim.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.whole import written_whole

SEED = 20260
VERSION = 1
USERS = 3000
FIRST_DAY = 1_640_995_200  # 2022-01-01, Unix seconds
DAYS = 730
WHIM = 0.08
"""Share of purchases that follow nothing but popularity."""
FADE = 0.02
"""Probability, at a purchase, that a department loses its place to another."""
LOYALTY = 0.9
"""Probability that a purchase is of the shopper's tier."""
TIERS = 2
"""Items of one brand at one stage, a cheaper and a dearer one."""

DEPARTMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Coffee": (
        ("Halden", "Moka & Pine", "Brightwell", "Corvo", "Sundry Roasters"),
        ("Pour-Over Starter Kit", "Paper Filters", "Hand Grinder", "Gooseneck Kettle",
         "Single Origin Beans", "Brewing Scale", "Milk Frother", "Burr Grinder", "Espresso Maker",
         "Tamper", "Descaler", "Barista Machine"),
    ),
    "Hiking": (
        ("Northpeak", "Trailhound", "Ashfold", "Verdant", "Kestrel Ridge"),
        ("Daypack", "Merino Socks", "Trail Shoes", "Water Bottle", "Rain Jacket", "Trekking Poles",
         "Headlamp", "Hiking Boots", "Sleeping Mat", "Camp Stove", "Two-Person Tent",
         "Touring Backpack"),
    ),
    "Baking": (
        ("Crumb & Co", "Old Mill", "Fennel", "Tartine House", "Levain"),
        ("Mixing Bowls", "Whisk Set", "Loaf Pan", "Bread Flour", "Dough Scraper", "Proofing Basket",
         "Kitchen Thermometer", "Cake Rings", "Piping Set", "Stand Mixer", "Baking Stone",
         "Pasta Attachment"),
    ),
    "Painting": (
        ("Umber", "Atelier Nord", "Lumen", "Saffron Studio", "Grayling"),
        ("Watercolour Set", "Round Brushes", "Cold-Press Paper", "Masking Tape", "Gouache Tubes",
         "Table Easel", "Acrylic Set", "Stretched Canvas", "Palette Knives", "Oil Paints",
         "Studio Easel", "Varnish"),
    ),
    "Cycling": (
        ("Velora", "Ironwheel", "Pavé", "Switchback", "Loop"),
        ("Helmet", "Tail Light", "Mini Pump", "Bottle Cage", "Cycling Gloves", "Saddle Bag",
         "Bike Computer", "Bib Shorts", "Clipless Pedals", "Cycling Shoes", "Indoor Trainer",
         "Carbon Wheelset"),
    ),
    "Gardening": (
        ("Greenhollow", "Tilth", "Marrow & Vine", "Sproutwell", "Elmsworth"),
        ("Seed Trays", "Potting Mix", "Hand Trowel", "Watering Can", "Herb Seeds", "Pruning Shears",
         "Raised Bed", "Tomato Cages", "Compost Bin", "Drip Irrigation Kit", "Grow Light",
         "Greenhouse"),
    ),
    "Home Audio": (
        ("Tonal", "Resonant", "Hallmark Sound", "Quarterwave", "Osprey Audio"),
        ("In-Ear Headphones", "Audio Cable", "Bookshelf Speakers", "Speaker Stands",
         "Headphone Amplifier", "Open-Back Headphones", "Turntable", "Record Brush", "Phono Preamp",
         "Subwoofer", "Integrated Amplifier", "Streaming Player"),
    ),
    "Yoga": (
        ("Stillwater", "Asana Works", "Lotusleaf", "Evenbreath", "Solace"),
        ("Yoga Mat", "Mat Towel", "Cork Blocks", "Strap", "Bolster", "Foam Roller",
         "Meditation Cushion", "Resistance Bands", "Balance Board", "Pilates Ring", "Wheel",
         "Inversion Swing"),
    ),
}  # fmt: skip
STYLES = (
    "Classic", "Compact", "Everyday", "Pro", "Light", "Heritage", "Studio", "Essential", "Select",
    "Natural", "Signature", "Slate", "Junior", "Deluxe",
)  # fmt: skip


@dataclass(frozen=True)
class _Store:
    """Item positions as an array [department, stage, brand, tier], and facts an item."""

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


def generate(
    seed: int = SEED, users: int = USERS
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
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
    shape = (len(DEPARTMENTS), stages, brands, TIERS)
    item = np.arange(np.prod(shape)).reshape(shape)
    launch_day = np.where(random.random(item.size) < 0.15, random.integers(30, DAYS, item.size), 0)
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
    departments, stages, brands, tiers = store.item.shape
    # Some departments and brands are liked more than others: the k-th at a rate of 1 / (k + 1).
    liked = 1 / (2 + np.arange(departments))
    turn = random.choice(departments, 3, replace=False, p=liked / liked.sum()).tolist()
    famous = 1 / (2 + np.arange(brands))
    brand = np.asarray(random.choice(brands, departments, p=famous / famous.sum()))
    reached = np.asarray(random.integers(stages, size=departments))
    step, stay, tier = random.integers(1, 4), random.integers(2, 4), random.integers(tiers)
    moment = random.uniform(0, DAYS * 0.7)
    bought: list[tuple[int, int]] = []
    everything = store.item.reshape(-1)
    for number in range(5 + min(40, int(random.geometric(1 / 10)))):
        moment += random.exponential(9.0) + 0.01
        if moment >= DAYS:
            break
        place = number // stay % 3
        if random.random() < FADE:
            turn[place] = int(random.choice([d for d in range(departments) if d not in turn]))
        department = turn[place]
        if random.random() < WHIM:
            candidates, liking = everything, store.appeal
        else:
            reached[department] += step
            if reached[department] >= stages:  # the path begins again, with another brand
                reached[department] -= stages
                brand[department] = (brand[department] + random.integers(1, brands)) % brands
            candidates = store.item[department, reached[department], brand[department]]
            liking = np.where(np.arange(tiers) == tier, LOYALTY, (1 - LOYALTY) / (tiers - 1))
        weight = liking * (store.launch_day[candidates] <= moment)
        if weight.sum() == 0:
            continue
        chosen = int(candidates[_drawn(random, weight)])
        bought.append((FIRST_DAY + int(moment * 86_400), chosen))
    return bought


def _drawn(random: np.random.Generator, weight: np.ndarray) -> int:
    """What random.choice draws from the same state, without its checks, which take most of it."""
    share = (weight / weight.sum()).cumsum()
    return int((share / share[-1]).searchsorted(random.random(), side="right"))


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    """JSON lines, gzipped with no time in the header, so that a seed gives the same bytes."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    with written_whole(path) as aside:
        aside.write_bytes(gzip.compress(lines.encode(), mtime=0))
