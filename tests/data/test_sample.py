"""The sample store: the same for everyone, and worth learning from."""

from pathlib import Path

import numpy as np
import pytest

from recsys.data import sample, sources
from recsys.data.info import describe, plot
from recsys.data.prepare import prepare
from recsys.data.split import SplitConfig, split
from recsys.eval.evaluator import evaluate
from recsys.eval.report import fit_counting
from recsys.models.item_knn import ItemKNN
from recsys.models.popular import Popular


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache folder that holds the files of the sample."""
    folder = tmp_path_factory.mktemp("cache")
    sample.files(folder / "sample", print)
    return folder


def test_a_seed_gives_the_same_bytes(cache, tmp_path):
    first = [path.read_bytes() for path in sample.files(cache / "sample", print)]
    again = [path.read_bytes() for path in sample.files(tmp_path, print)]
    assert first == again


def test_a_draw_is_that_of_choice():
    ours, theirs = np.random.default_rng(0), np.random.default_rng(0)
    for size in [1, 2, 7, 300] * 25:
        weight = ours.pareto(1.5, size) * (ours.random(size) < 0.8) + 1e-9
        theirs.pareto(1.5, size), theirs.random(size)
        assert sample._drawn(ours, weight) == theirs.choice(size, p=weight / weight.sum())


def test_the_store_is_skewed_has_cold_items_and_is_no_easy_prey(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(cache))
    dataset = prepare(sources.resolve("sample", report=print), tmp_path / "out", report=print)
    facts = describe(dataset)
    assert facts["users"] == sample.USERS
    assert 30_000 < facts["interactions"] < 60_000
    assert facts["item_popularity"]["gini"] > 0.25
    assert facts["item_popularity"]["min"] <= 3
    assert facts["history_length"]["min"] >= 3
    assert all(dataset.catalogue["title"].to_pylist())
    parts = split(dataset, SplitConfig())
    results = {}
    for model in (
        Popular(Popular.Config(), dataset.num_items),
        ItemKNN(ItemKNN.Config(), dataset.num_items),
    ):
        fit_counting(model, dataset, parts.train)
        results[type(model).__name__] = evaluate(model, dataset, parts.test).metrics([10])[
            "ndcg@10"
        ]
    assert results["Popular"] < 0.05
    assert results["Popular"] < results["ItemKNN"] < 0.3
    plot(dataset, tmp_path / "info.png")
    assert (tmp_path / "info.png").read_bytes().startswith(b"\x89PNG")


def test_shoppers_go_on_in_steps_of_their_own():
    reviews, products = sample.generate(seed=1, users=60)
    stage = {p["asin"]: number // 10 % 12 for number, p in enumerate(products)}
    place = {p["asin"]: (p["category"][1], p["brand"]) for p in products}
    steps: dict[str, list[int]] = {}
    last: dict[tuple, int] = {}
    for review in reviews:
        key = (review["reviewerID"], *place[review["asin"]])
        if key in last:
            steps.setdefault(review["reviewerID"], []).append(
                (stage[review["asin"]] - last[key]) % 12
            )
        last[key] = stage[review["asin"]]
    shares = [np.bincount(found).max() / len(found) for found in steps.values() if len(found) >= 5]
    assert np.mean(shares) > 0.75
