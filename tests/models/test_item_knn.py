"""Co-occurrence against sums made by hand."""

from typing import Any

import pytest
import torch

from recsys.batch import PAD, Batch
from recsys.errors import InputError
from recsys.models.item_knn import ItemKNN


def fitted(histories: list[list[int]], num_items: int = 4, **settings: Any) -> ItemKNN:
    model = ItemKNN(ItemKNN.Config(**settings), num_items)
    items = torch.tensor([item for history in histories for item in history])
    lengths = torch.tensor([0, *map(len, histories)])
    model.fit(items, lengths.cumsum(0), torch.zeros(len(items)))
    return model


def scores(model: ItemKNN, *histories: list[int]) -> list[list[float]]:
    """Of items 1.., a row a history."""
    longest = max(map(len, histories))
    items = [history + [PAD] * (longest - len(history)) for history in histories]
    batch = Batch(torch.tensor(items), torch.tensor([len(history) for history in histories]))
    return model.scorer()(batch)[:, 1:].tolist()


# Of 1 -> 2 there are two side by side; 1 -> 3 is two places apart, 2 -> 3 one.
WORLD = [[1, 2, 3], [1, 2]]


def test_a_follower_weighs_by_how_often_and_how_closely_it_followed():
    model = fitted(WORLD, window=2, decay=0.5)
    assert scores(model, [1], [2], [3], [4]) == [[0, 2, 0.5, 0], [0, 0, 1, 0], [0] * 4, [0] * 4]


def test_older_items_of_the_history_count_less():
    model = fitted(WORLD, window=2, decay=0.5)
    assert scores(model, [1, 2], [2, 1]) == [[0, 1, 1.25, 0], [0, 2, 0.5 + 0.5, 0]]


def test_an_item_that_comes_twice_in_the_history_counts_twice():
    assert scores(fitted(WORLD, window=2, decay=0.5), [1, 1]) == [[0, 3, 0.75, 0]]


def test_items_further_back_than_the_window_do_not_count():
    model = fitted([[1, 2, 3, 4]], window=2, decay=0.5)
    assert scores(model, [1]) == [[0, 1, 0.5, 0]]
    assert scores(model, [1, 4, 4]) == [[0] * 4]


def test_a_window_of_one_counts_neighbours_and_asks_about_the_last_item():
    assert scores(fitted(WORLD, window=1), [1, 2], [2, 1]) == [[0, 0, 1, 0], [0, 2, 0, 0]]


def test_without_decay_every_place_in_the_window_counts_the_same():
    model = fitted([[1, 2, 3, 4]], window=3, decay=1.0)
    assert scores(model, [1], [1, 2]) == [[0, 1, 1, 1], [0, 1, 2, 2]]


def test_pairs_do_not_reach_into_the_next_history():
    assert scores(fitted([[1, 2], [3, 4]]), [2]) == [[0] * 4]


def test_an_item_does_not_follow_itself():
    assert scores(fitted([[1, 1, 2]], window=2, decay=0.5), [1]) == [[0, 1.5, 0, 0]]


def test_only_the_strongest_followers_are_kept():
    histories = [[1, 2], [1, 3], [1, 3], [1, 4], [1, 4], [1, 4]]
    assert scores(fitted(histories, num_neighbours=2), [1]) == [[0, 0, 2, 3]]
    assert scores(fitted(histories, num_neighbours=99), [1]) == [[0, 1, 2, 3]]


def test_of_equally_strong_followers_the_first_items_are_kept():
    assert scores(fitted([[1, 4], [1, 3], [1, 2]], num_neighbours=2), [1]) == [[0, 1, 1, 0]]


def test_histories_without_a_pair_teach_nothing():
    assert scores(fitted([[1], [2]], window=5), [1, 2]) == [[0] * 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_neighbours": 0}, "must be at least 1"),
        ({"window": 0}, "must be at least 1"),
        ({"decay": 0.0}, r"model.decay must lie in \(0, 1\], got 0.0"),
        ({"decay": 1.5}, "got 1.5"),
        ({"decay": float("nan")}, "got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ItemKNN.Config(**settings)
