"""Popularity against counts made by hand."""

import pytest
import torch

from recsys.batch import Batch
from recsys.data.sequences import SequenceDataset
from recsys.data.split import SplitConfig, split
from recsys.errors import InputError
from recsys.eval.report import fit_counting
from recsys.models.popular import Popular

ANY = Batch(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1]))
ITEMS = [2, 3, 2, 2, 3, 1]
AGES = [9.0, 7.5, 7.0, 1.0, 0.5, 0.0]


def popular(days: float | None = None, num_items: int = 4) -> Popular:
    model = Popular(Popular.Config(days=days), num_items)
    offsets = torch.tensor([0, 4, len(ITEMS)])
    model.fit(torch.tensor(ITEMS), offsets, torch.tensor(AGES, dtype=torch.float64))
    return model


def scores(model: Popular) -> list[float]:
    """Of items 1.., which are the same for every history."""
    first, second = model.scorer()(ANY).tolist()
    assert first == second
    return first[1:]


def test_an_item_scores_as_often_as_it_occurs_whoever_asks():
    assert scores(popular()) == [1, 3, 2, 0]


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (0.4, [1, 0, 0, 0]),
        (1.0, [1, 1, 1, 0]),
        (7.0, [1, 2, 1, 0]),
        (7.5, [1, 2, 2, 0]),
        (100.0, [1, 3, 2, 0]),
    ],
)
def test_days_count_what_is_not_older(days, expected):
    assert scores(popular(days)) == expected


def test_days_go_back_from_the_newest_interaction_of_training():
    day = 24 * 3600
    times = torch.tensor([0, 1, 3, 9, 9, 0, 2, 4, 9, 9]) * day
    items = [1, 2, 3, 4, 4, 1, 2, 3, 4, 4]
    dataset = SequenceDataset.from_arrays(items, [0, 5, 10], times.numpy())
    dataset.info["time_unit"] = "s"
    model = Popular(Popular.Config(days=2.0), dataset.num_items)
    fit_counting(model, dataset, split(dataset, SplitConfig()).train)
    # Training ends on day 4: day 2 is just in, days 0 and 1 are not.
    assert scores(model) == [0, 1, 2, 0]


def test_items_bought_equally_often_score_the_same():
    model = Popular(Popular.Config(), 3)
    model.fit(torch.tensor([3, 1, 2, 1, 2]), torch.tensor([0, 5]), torch.zeros(5))
    assert scores(model) == [2, 2, 1]


@pytest.mark.parametrize("days", [0.0, -1.0])
def test_days_that_leave_nothing_are_refused(days):
    with pytest.raises(InputError, match=f"model.days must be above 0, got {days}"):
        Popular.Config(days=days)
