"""The soak's ledger tells what a service lost from what it never acknowledged."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
ledger = importlib.import_module("soak_ledger")
Change, Item = ledger.Change, ledger.Item


def catalogue():
    return ledger.Catalogue({"a": Item(True, "soap"), "new": Item(False, None)})


def test_a_catalogue_as_it_was_is_right_and_an_item_gone_or_come_is_not():
    assert catalogue().wrong(["a", "new"], {"a": "soap"}) == []
    assert len(catalogue().wrong(["a", "new"], {})) == 1
    assert len(catalogue().wrong(["a", "new"], {"a": "soap", "new": "hose"})) == 1


@pytest.mark.parametrize(
    ("kinds", "shown"),
    [
        (["remove"], None),
        (["unavailable"], None),
        (["unavailable", "available"], "soap"),
        (["remove", "available"], None),
        (["remove", "upsert"], "lamp"),
        (["unavailable", "upsert"], None),
        (["unavailable", "upsert", "available"], "lamp"),
    ],
)
def test_acknowledged_changes_show_and_their_loss_is_found(kinds: list[str], shown: str | None):
    for found, complaints in ((shown, 0), ("soap" if shown != "soap" else None, 1)):
        items = catalogue()
        for kind in kinds:
            items.acknowledged(Change(kind, ("a",), "lamp"))
        assert len(items.wrong(["a"], {} if found is None else {"a": found})) == complaints


def test_availability_of_an_item_that_nobody_knows_changes_nothing():
    items = catalogue()
    items.acknowledged(Change("unavailable", ("new",)))
    items.acknowledged(Change("upsert", ("new",), "hose"))
    assert items.wrong(["new"], {"new": "hose"}) == []


@pytest.mark.parametrize(("first", "then"), [("soap", "lamp"), ("lamp", "soap")])
def test_an_unanswered_change_was_made_or_not_but_not_both(first: str, then: str):
    items = catalogue()
    items.unanswered(Change("upsert", ("a",), "lamp"))
    assert items.wrong(["a"], {"a": first}) == []
    assert len(items.wrong(["a"], {"a": then})) == 1


def test_events_are_counted_by_user_and_model():
    events = ledger.Events()
    assert events.wrong("u", "A", 2, 2) is None
    assert events.wrong("u", "A", 1, 3) is None
    assert events.wrong("u", "B", 1, 1) is None
    assert events.wrong("v", "A", 1, 1) is None
    assert events.total == 5
    assert "2 events of u in A, not 4" in str(events.wrong("u", "A", 1, 2))


def test_unanswered_events_may_be_there_once():
    for told, right in ((1, False), (2, True), (5, True), (6, False)):
        events = ledger.Events()
        events.wrong("u", "A", 1, 1)
        events.unanswered("u", 3)
        assert (events.wrong("u", "A", 1, told) is None) == right
        assert events.wrong("u", "A", 1, told + 1) is None
        assert events.wrong("u", "A", 1, told + 3) is not None


def test_growth_is_that_of_the_last_fifth_over_the_first_behind_the_warm_up():
    samples = [(float(second), 10.0 if second < 10 else 100.0) for second in range(35)]
    assert ledger.growth(samples, 10.0) == {"first_mb": 100.0, "last_mb": 100.0, "percent": 0.0}
    assert ledger.growth([(s, 100.0 + s) for s, _ in samples], 10.0) == {
        "first_mb": 112.0,
        "last_mb": 132.0,
        "percent": 17.86,
    }
    assert ledger.growth(samples, 31.0) is None
