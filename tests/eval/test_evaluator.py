"""Evaluation against a plain walk over users, and intervals against plain resampling."""

import numpy as np
import pytest
import torch
from worlds import world

from recsys.batch import Batch
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Queries, SplitConfig, split
from recsys.errors import InputError
from recsys.eval.evaluator import (
    Evaluation,
    check_ks,
    evaluate,
    evaluate_through,
    paired_difference,
)
from recsys.models.base import CountingModel, Recommender, model_class
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.snapshot import Snapshot

KS = (1, 5, 10)


def random_world(seed: int, num_items: int = 23) -> SequenceDataset:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 15, 40)
    return world([random.integers(1, num_items + 1, n).tolist() for n in lengths], num_items)


def fitted(name: str, dataset: SequenceDataset) -> Recommender:
    settings = {
        "sasrec": {"dim": 8, "num_heads": 1, "max_len": 6},
        "popular": {},
        "item_knn": {"window": 3},
    }[name]
    torch.manual_seed(0)
    kind = model_class(name)
    model = kind(kind.Config(**settings), dataset.num_items)
    if isinstance(model, CountingModel):
        items = torch.from_numpy(dataset.items.astype(np.int64))
        model.fit(items, torch.from_numpy(dataset.offsets), torch.zeros(len(items)))
    else:
        torch.nn.init.normal_(model.encoder.items.weight)
    return model.eval()


@torch.no_grad()
def ranks_by_hand(model: Recommender, dataset: SequenceDataset, queries: Queries, seen: str):
    """One user at a time, one item at a time."""
    ranks = []
    for start, end in zip(queries.start, queries.end, strict=True):
        history, target = dataset.items[start:end].tolist(), int(dataset.items[end])
        cut = history[-model.max_len :]
        batch = Batch(torch.tensor([cut]), torch.tensor([len(cut)]))
        score = dict(enumerate(model.scorer()(batch)[0].tolist()))
        del score[0]
        hidden = set(history) if seen == "mask" else set()
        score = {item: -np.inf if item in hidden else value for item, value in score.items()}
        ranks.append(sum(score[item] >= score[target] for item in score) - 1)
    return ranks


@pytest.mark.parametrize("seen", ["mask", "keep"])
@pytest.mark.parametrize("name", ["sasrec", "popular", "item_knn"])
def test_evaluate_equals_ranking_one_user_after_the_other(name, seen):
    for seed in range(3):
        dataset = random_world(seed)
        model, queries = fitted(name, dataset), split(dataset, SplitConfig()).test
        found = evaluate(model, dataset, queries, seen)
        assert found.rank_Q.tolist() == ranks_by_hand(model, dataset, queries, seen)
        assert found.users == len(queries)


def test_what_max_len_cuts_off_still_counts_as_seen():
    # Popularity order is 1, 2, ..., 9. The user saw 1 to 8; a model of two items sees 7 and 8 only.
    dataset = world([[1, 2, 3, 4, 5, 6, 7, 8, 9], *([n] * (20 - n) for n in range(1, 10))])
    model = fitted("popular", dataset)
    model.max_len = 2
    test = split(dataset, SplitConfig()).test
    query = Queries(test.user[:1], test.start[:1], test.end[:1])
    assert evaluate(model, dataset, query, "mask").rank_Q.tolist() == [0]
    assert evaluate(model, dataset, query, "keep").rank_Q.tolist() == [8]


@pytest.mark.parametrize("seen", ["mask", "keep"])
def test_ranks_through_the_retriever_are_those_of_exact_search(seen):
    dataset = random_world(5)
    model, queries = fitted("sasrec", dataset), split(dataset, SplitConfig()).test
    retriever = Retriever(Snapshot(model, dataset.catalogue, None, "cpu"))
    exact = evaluate(model, dataset, queries, seen).rank_Q
    through = evaluate_through(retriever, dataset, queries, seen, 10).rank_Q
    masked = torch.tensor(
        [
            seen == "mask" and dataset.items[end] in dataset.items[start:end]
            for start, end in zip(queries.start, queries.end, strict=True)
        ]
    )
    assert torch.equal(through, torch.where((exact < 10) & ~masked, exact, dataset.num_items))


def test_through_the_retriever_ties_stand_before_the_target_and_no_miss_is_a_hit():
    dataset = random_world(5)
    model, queries = fitted("sasrec", dataset), split(dataset, SplitConfig()).test
    with torch.no_grad():
        model.encoder.items.weight[2::2] = model.encoder.items.weight[2]  # even items are alike
    retriever = Retriever(Snapshot(model, dataset.catalogue, None, "cpu"))
    exact = evaluate(model, dataset, queries, "keep").rank_Q
    for k in (1, 3, 10):
        through = evaluate_through(retriever, dataset, queries, "keep", k).rank_Q
        assert torch.equal(through < k, exact < k)
        assert torch.equal(through[through < k], exact[exact < k])
    # Targets that were seen before are masked, and so never among the answers.
    beyond = evaluate_through(retriever, dataset, queries, "mask", 100).rank_Q
    repeated = [
        dataset.items[end] in dataset.items[start:end]
        for start, end in zip(queries.start, queries.end, strict=True)
    ]
    assert (beyond >= 100).tolist() == repeated
    assert any(repeated)


def test_metrics_are_means_over_targets():
    found = Evaluation(torch.tensor([0, 1, 7, 30]), np.arange(4))
    means = found.metrics([1, 5])
    assert list(means) == ["hr@1", "ndcg@1", "mrr@1", "hr@5", "ndcg@5", "mrr@5"]
    assert (means["hr@1"], means["hr@5"], means["mrr@5"]) == (0.25, 0.5, 0.375)


def drawn_directly(found: Evaluation, name: str, draws: int = 2000) -> np.ndarray:
    """Users drawn with replacement, each with all of its targets."""
    random = np.random.default_rng(11)
    value_Q = found.values(KS)[:, list(found.metrics(KS)).index(name)]
    users = np.unique(found.user_Q)
    own = [value_Q[found.user_Q == user] for user in users]
    rows = random.integers(len(users), size=(draws, len(users)))
    return np.array([np.concatenate([own[u] for u in row]).mean() for row in rows])


@pytest.mark.parametrize("targets_a_user", [1, 4])
@pytest.mark.parametrize("name", ["hr@5", "ndcg@10"])
def test_intervals_are_those_of_resampling_users(targets_a_user, name):
    random = np.random.default_rng(2)
    # Targets of a user are alike, and users have 1 to 4 of them: drawing targets would be wrong.
    users = np.repeat(np.arange(120), random.integers(1, targets_a_user + 1, 120))
    rank = torch.from_numpy(random.integers(0, 20, 120)[users])
    found = Evaluation(rank, users)
    expected = np.quantile(drawn_directly(found, name), [0.025, 0.975])
    entry = found.with_intervals(KS)[name]
    assert entry["value"] == pytest.approx(found.metrics(KS)[name])
    np.testing.assert_allclose(entry["ci95"], expected, atol=0.012)
    assert found.with_intervals(KS) == found.with_intervals(KS)


def test_a_paired_difference_is_other_minus_one_with_its_interval():
    one = Evaluation(torch.tensor([0, 9, 9, 9]), np.arange(4))
    other = Evaluation(torch.tensor([9, 0, 0, 9]), np.arange(4))
    found = paired_difference(one, other, [1])["hr@1"]
    assert found["difference"] == 0.25
    low, high = found["ci95"]
    assert -1 <= low < 0.25 < high <= 1
    same = paired_difference(one, one, [1])["hr@1"]
    assert same == {"difference": 0.0, "ci95": [0.0, 0.0]}


def test_a_difference_that_is_the_same_everywhere_is_certain():
    users = np.repeat(np.arange(5), [1, 2, 3, 10, 40])
    one = Evaluation(torch.full((56,), 9), users)
    other = Evaluation(torch.zeros(56, dtype=torch.int64), users)
    found = paired_difference(one, other, [1])["hr@1"]
    assert found["difference"] == 1.0
    assert found["ci95"] == [1.0, 1.0]


def test_evaluations_over_other_users_are_not_compared():
    one = Evaluation(torch.tensor([0, 1]), np.arange(2))
    with pytest.raises(InputError, match="same targets"):
        paired_difference(one, Evaluation(torch.tensor([0, 1]), np.arange(1, 3)), [1])


def test_cut_offs_are_sorted_and_checked():
    assert check_ks([10, 5, 10]) == (5, 10)
    for bad in ([], [0], [5, -1]):
        with pytest.raises(InputError, match="whole numbers from 1"):
            check_ks(bad)
