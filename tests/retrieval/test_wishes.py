"""What may come back, in which order and with which scores: filters, allow, diversity, chances."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from untrained import random_model, write_run

from recsys.errors import InputError
from recsys.retrieval import Retriever
from recsys.retrieval.index import build_run_index

SIZE = 400
NAMES = [f"i{n}" for n in range(1, SIZE + 1)]
CATALOGUE = pa.table(
    {
        "item": NAMES,
        "title": [f"thing {n}" for n in range(1, SIZE + 1)],
        "count": [SIZE - n for n in range(SIZE)],
        "kind": [("lamp", "soap", "hose")[n % 3] for n in range(SIZE)],
        "price": [n / 10 for n in range(SIZE)],
    }
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wishes")
    settings = {"dim": 8, "max_len": 6}
    model = random_model("sasrec", settings, SIZE, seed=5)
    write_run(folder, model, "sasrec", settings, CATALOGUE)
    build_run_index(folder, "hnsw")
    return folder


@pytest.fixture(scope="module", params=["exact", "index"])
def retriever(request, run):
    return Retriever.load(run, index=request.param)


HISTORY = ["i3", "i17", "i230"]


def everything(retriever, **wishes):
    """The order of the whole catalogue, by exact search of this retriever's own model."""
    found = retriever.recommend(HISTORY, k=SIZE, **wishes)
    return dict(zip(found.items, found.scores, strict=True))


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        ("kind = 'lamp'", lambda row: row["kind"] == "lamp"),
        ("kind = 'soap' and price < 5", lambda row: row["kind"] == "soap" and row["price"] < 5),
        ("price between 1 and 1.3", lambda row: 1 <= row["price"] <= 1.3),
    ],
)
def test_a_filter_gives_the_best_of_those_that_pass(run, retriever, filters, holds):
    exact = everything(Retriever.load(run, index="exact"))
    passing = [row["item"] for row in CATALOGUE.to_pylist() if holds(row)]
    wanted = sorted((item for item in passing if item in exact), key=lambda i: -exact[i])
    found = retriever.recommend(HISTORY, k=8, filters=filters)
    assert found.items == wanted[:8]
    assert (found.short is None) == (len(wanted) >= 8)


def test_a_list_that_a_filter_leaves_short_says_so(retriever):
    found = retriever.recommend(HISTORY, k=8, filters="price between 1 and 1.3")
    assert len(found.items) == 4
    assert found.short is not None
    assert found.short.startswith("4 of 8: no other item passes")
    assert retriever.recommend(HISTORY, k=8).short is None


def test_an_index_is_named_where_it_was_searched_and_not_where_it_was_not(run):
    through = Retriever.load(run, index="index")
    assert through.recommend(HISTORY).index_version == through.version()["index"] is not None
    assert through.recommend(HISTORY, filters="price < 2").index_version is None
    assert Retriever.load(run, index="exact").recommend(HISTORY).index_version is None


def test_only_what_is_allowed_comes_back(retriever):
    found = retriever.recommend(HISTORY, k=5, allow=["i3", "i9", "i40", "never heard of"])
    assert sorted(found.items) == ["i40", "i9"]
    assert found.short is not None


def test_popularity_keeps_to_the_filter_too(retriever):
    found = retriever.recommend([], k=3, filters="kind = 'hose'", exclude=["i3"])
    assert (found.items, found.fallback) == (["i6", "i9", "i12"], "popularity")
    assert found.scores == [395.0, 392.0, 389.0]


def test_probabilities_are_the_softmax_over_the_whole_catalogue(retriever):
    product = everything(retriever, exclude_seen=False)
    scores = np.array(list(product.values()), dtype=np.float64)
    chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    found = retriever.recommend(HISTORY, k=SIZE, exclude_seen=False, score="probability")
    assert found.items == list(product)
    assert found.scores == pytest.approx(chances.tolist(), rel=1e-3, abs=1e-9)


def test_more_diversity_makes_a_list_less_alike(retriever):
    def alike(weight):
        items = retriever.recommend(HISTORY, k=10, diversity=weight).items
        vectors = retriever.model.item_vectors().detach()[retriever.vocab.encode(items)[0]]
        unit = torch.nn.functional.normalize(vectors, dim=1)
        return float((unit @ unit.T).triu(1).sum())

    assert alike(0.9) < alike(0.4) < alike(0.0)
    assert retriever.recommend(HISTORY, k=10, diversity=0.0) == retriever.recommend(HISTORY, k=10)


def test_similar_items_are_those_of_the_largest_cosine(retriever):
    vectors = retriever.model.item_vectors().detach().double()[1:]
    unit = torch.nn.functional.normalize(vectors, dim=1)
    cosines = (unit @ unit[6]).tolist()
    order = sorted((n for n in range(SIZE) if n != 6), key=lambda n: -cosines[n])[:5]
    found = retriever.similar_items("i7", k=5)
    assert found.items == [NAMES[n] for n in order]
    assert found.scores == pytest.approx([cosines[n] for n in order], abs=1e-5)


def test_a_query_made_apart_finds_what_its_history_finds(retriever):
    query_D = retriever.encode_user(HISTORY)
    assert query_D.shape == (8,)
    (found,) = retriever.search(query_D[None], k=10, exclude=HISTORY)
    assert found.items == retriever.recommend(HISTORY, k=10).items


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"diversity": 1.5}, r"diversity must lie in \[0, 1\], got 1.5"),
        ({"score": "chance"}, "score must be product or probability"),
        ({"filters": "colour = 'red'"}, "colour"),
        ({"filters": "price <"}, "filter"),
        ({"allow": "i3"}, "allow is a list of item ids"),
        ({"k": 0}, "k must be at least 1"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(retriever, wish, message):
    with pytest.raises(InputError, match=message):
        retriever.recommend(HISTORY, **wish)


@pytest.mark.parametrize("vectors", [np.zeros(8), np.zeros((1, 7)), np.full((1, 8), np.nan)])
def test_queries_of_another_shape_or_no_numbers_are_refused(retriever, vectors):
    with pytest.raises(InputError, match=r"vectors must be numbers of shape \[B, 8\]"):
        retriever.search(vectors)


def test_an_unknown_item_has_nothing_similar(retriever):
    with pytest.raises(InputError, match="'i0' is not in the catalogue"):
        retriever.similar_items("i0")
