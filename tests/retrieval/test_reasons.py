"""Why an item is recommended: causes known by construction, and a slow loop over `recommend`."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from untrained import random_model, write_run

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.models.base import CountingModel, SequenceModel
from recsys.retrieval import Retriever
from recsys.retrieval.reasons import EVENTS, Reason
from recsys.retrieval.snapshot import Snapshot

NAMES = list("abcdefgh")
TITLES = [f"title of {name}" for name in NAMES]
NUMBERS = {name: number for number, name in enumerate(NAMES, start=1)}


class Adding(SequenceModel):
    """Scores an item by the sum of what each event says for it, times its time where it has one."""

    def __init__(self, says: dict[tuple[str, str], float], max_len: int):
        super().__init__()
        self.max_len = max_len
        self.asked: list[int] = []
        self.says_VV = torch.zeros(len(NAMES) + 1, len(NAMES) + 1)
        for (event, item), value in says.items():
            self.says_VV[NUMBERS[event], NUMBERS[item]] = value

    def encode(self, batch: Batch) -> Tensor:
        self.asked.append(len(batch.lengths_B))
        said_BTV = self.says_VV[batch.items_BT]
        if batch.timestamps_BT is not None:
            said_BTV = said_BTV * batch.timestamps_BT[..., None]
        return said_BTV.cumsum(dim=1)

    def item_vectors(self) -> Tensor:
        return torch.eye(len(NAMES) + 1)


def adding(max_len: int = 100, **says: float) -> Retriever:
    """`ab=2`: an event of a says 2 for b."""
    model = Adding({(pair[0], pair[1]): value for pair, value in says.items()}, max_len)
    return Retriever(Snapshot(model, pa.table({"item": NAMES, "title": TITLES}), None, "cpu"))


def reason(item: str, gain: float | None) -> Reason:
    return Reason(item, f"title of {item}", gain)


def test_the_event_that_says_most_for_an_item_is_its_reason():
    retriever = adding(ag=2, bg=3, bh=1, ch=-4, df=-1)
    history = ["a", "b", "c", "d"]
    found = retriever.reasons(history, ["g", "h", "f", "e", "g"])
    assert found == [reason("b", 3), reason("b", 1), None, None, reason("b", 3)]
    assert retriever.reasons(history, []) == []


def test_all_is_scored_in_one_batch():
    retriever = adding(ag=2, bg=3)
    retriever.reasons(list("abcdab"), NAMES)
    assert retriever.model.asked == [7]
    short = adding(max_len=3, ag=2, bg=3)
    short.reasons(list("abcdab"), NAMES)
    assert short.model.asked == [4]


def test_one_event_is_left_out_and_not_every_event_of_its_item():
    assert adding(ag=2, bg=3).reasons(["a", "b", "a", "a"], ["g"]) == [reason("b", 3)]
    assert adding(ag=2, bg=1).reasons(["a", "b", "a", "a"], ["g"]) == [reason("a", 2)]


def test_an_event_goes_with_its_own_time():
    retriever = adding(ag=1, bg=1)
    assert retriever.reasons(["a", "b", "x", "a"], ["g"], times=[5, 6, 9, 4]) == [reason("b", 6)]
    assert retriever.reasons(["x", "a", "b", "a"], ["g"], times=[9, 5, 6, 7]) == [reason("a", 7)]


def test_of_equal_events_the_latest_is_the_reason():
    assert adding(ag=1, bg=1).reasons(["a", "b", "c"], ["g"]) == [reason("b", 1)]
    assert adding(ag=1, bg=1).reasons(["b", "a", "c"], ["g"]) == [reason("a", 1)]


def test_what_lies_before_the_last_events_takes_the_place_of_the_one_that_is_left_out():
    retriever = adding(max_len=3, ag=1, bg=2, cg=4, dg=9)
    assert retriever.reasons(["d", "a", "a", "b", "c"], ["g"]) == [reason("c", 3)]
    assert retriever.reasons(["a", "d", "a", "b", "c"], ["g"]) == [None]
    times = [1, 1, 1, 2, 3]
    assert retriever.reasons(["d", "a", "a", "b", "c"], ["g"], times=times) == [reason("c", 11)]


def test_only_the_latest_events_are_tried():
    retriever = adding(ag=5, bg=1)
    history = ["a", *["b"] * (EVENTS - 1)]
    assert retriever.reasons(history, ["g"]) == [reason("a", 5)]
    assert retriever.reasons([*history, "b"], ["g"]) == [reason("b", 1)]


def test_a_fall_within_rounding_is_none():
    assert adding(ag=-1, bg=3e-7).reasons(["a", "b"], ["g"]) == [None]
    (found,) = adding(ag=-1, bg=3e-6).reasons(["a", "b"], ["g"])
    assert found is not None
    assert found.item == "b"


def test_the_only_event_is_the_reason_but_has_nothing_to_be_compared_with():
    retriever = adding(ag=2)
    assert retriever.reasons(["a"], ["g", "h"]) == [reason("a", None)] * 2
    assert retriever.reasons(["?", "a", "!"], ["g"], times=[1, 2, 3]) == [reason("a", None)]


def test_a_history_without_a_known_item_gives_no_reason():
    for history in ([], ["?", "!"]):
        assert adding(ag=2).reasons(history, ["g", "h"]) == [None, None]


def test_removed_items_still_count_as_events_and_can_be_asked_for():
    retriever = adding(ag=2, bg=3)
    retriever.remove_items(["b", "g"])
    assert retriever.reasons(["a", "b"], ["g"]) == [reason("b", 3)]


@pytest.mark.parametrize(
    ("history", "items", "times", "message"),
    [
        (["a"], ["g", "?"], None, r"items hold '\?', which is not in the catalogue"),
        (["a"], "g", None, "items is a list of item ids, got str 'g'"),
        ("ab", ["g"], None, "a history is a list of item ids, got str 'ab'"),
        (["a", "b"], [["g"]], None, "items holds what cannot be an item id"),
        (["a", "b"], ["g"], [1], "times must name one time for each item"),
        (["?"], ["g"], [1, 2], "times must name one time for each item"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(history, items, times, message):
    with pytest.raises(InputError, match=message):
        adding(ag=2).reasons(history, items, times=times)


SETTINGS: dict[str, dict[str, Any]] = {
    "sasrec": {"dim": 8, "max_len": 4},
    "gru4rec": {"dim": 8, "max_len": 4},
    "bert4rec": {"dim": 8, "max_len": 4},
    "hstu_rec": {"dim": 8, "max_len": 4},
    "item_knn": {},
}
HISTORIES = [["a", "b"], ["c", "a", "c", "c"], ["h", "?", "a"], list("abcdefgh"), list("ggabagab")]
CHAINS = ["ag", "ag", "ag", "bh", "bh", "abcdef"]


def loaded(folder: Path, name: str) -> Retriever:
    """A run of random weights, or of counts of CHAINS."""
    settings = SETTINGS.get(name, {})
    model = random_model(name, settings, len(NAMES), seed=1)
    if isinstance(model, CountingModel):
        items = torch.tensor([NUMBERS[event] for chain in CHAINS for event in chain])
        offsets = torch.tensor(np.cumsum([0, *map(len, CHAINS)]))
        model.fit(items, offsets, torch.zeros(len(items)))
    table = pa.table({"item": NAMES, "title": TITLES})
    return Retriever.load(write_run(folder, model, name, settings, table))


@pytest.mark.parametrize("name", SETTINGS)
def test_reasons_are_those_of_a_loop_over_recommend(tmp_path, name):
    retriever = loaded(tmp_path, name)

    def scores(history: list[str], times: list[int]) -> dict[str, float]:
        timed = times if name == "hstu_rec" else None
        found = retriever.recommend(history, len(NAMES), times=timed, exclude_seen=False)
        return dict(zip(found.items, found.scores, strict=True))

    reasoned = 0
    for history in HISTORIES:
        times = [100 * place * place for place in range(len(history))]
        whole = scores(history, times)
        without = [
            scores(history[:place] + history[place + 1 :], times[:place] + times[place + 1 :])
            for place in range(len(history))
        ]
        timed = times if name == "hstu_rec" else None
        found = retriever.reasons(history, NAMES, times=timed)
        for item, why in zip(NAMES, found, strict=True):
            falls = [whole[item] - left[item] for left in without]
            causes = [history[place] for place, f in enumerate(falls) if f > max(falls) - 1e-5]
            if why is None:
                assert max(falls) < 1e-5
            else:
                assert why.gain == pytest.approx(max(falls), rel=1e-4, abs=1e-5)
                assert why.item in causes
                reasoned += 1
    assert reasoned >= 10


def test_what_followed_an_event_in_training_is_recommended_because_of_it(tmp_path):
    retriever = loaded(tmp_path, "item_knn")
    # g stood behind a three times, h behind b twice; an event one place back counts half.
    assert retriever.reasons(["b", "a"], ["g", "h", "a"]) == [reason("a", 3), reason("b", 1), None]


def test_a_counting_model_has_a_score_without_any_event(tmp_path):
    retriever = loaded(tmp_path, "item_knn")
    assert retriever.reasons(["a"], ["g", "h"]) == [reason("a", 3), None]


def test_what_is_popular_has_no_reason_in_the_history(tmp_path):
    retriever = loaded(tmp_path, "popular")
    for history in (["a"], ["a", "b"], list("abcdefgh")):
        assert retriever.reasons(history, ["a", "g"]) == [None, None]
