"""Tables say the numbers that the results hold, whatever names and titles look like."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recsys.data.sequences import SequenceDataset
from recsys.eval import tables
from recsys.models.base import model_list
from recsys.recipes import recipe_list
from recsys.retrieval import Retriever
from recsys.run import prepare, train
from recsys.training.losses import loss_list

ODD = ["[a]", "[/b]", "x[red]", "a]b[", "back\\", "\\[c]", ":smile:"]
"""Words that a markup language would take for its own."""


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]):
    def show(table: Any, *values: Any) -> str:
        table(*values)
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return show


def row(text: str, name: str) -> list[str]:
    """The cells behind a name in the first column."""
    (line,) = (line for line in text.splitlines() if re.match(rf"[│┃ ]*{re.escape(name)} ", line))
    return [cell.strip() for cell in re.split("[│┃]", line)[2:-1]]


def evaluated(name: str = "shop", run: str = "runs/a", **protocol: Any) -> dict[str, Any]:
    return {
        "data": {
            "name": name,
            "fingerprint": "0123456789abcdef" * 4,
            "users": 22363,
            "items": 12101,
            "interactions": 198502,
        },
        "split": {"kind": "leave_one_out", "part": "test", "users_train_only": 1041},
        "protocol": {"seen": "mask", "refit": False, "through": "exact", **protocol},
        "model": "sasrec",
        "users": 21322,
        "targets": 21323,
        "metrics": {
            "hr@5": {"value": 0.12346, "ci95": [0.11114, 0.13336]},
            "ndcg@10": {"value": 1.0, "ci95": [0.0, 1.0]},
        },
        "baselines": {
            "popular": {"hr@5": 0.00006, "ndcg@10": 0.5},
            "popular, last 30 days": {"hr@5": 0.25, "ndcg@10": 0.75},
            "item_knn": {"hr@5": 0.9, "ndcg@10": 0.05},
        },
        "run": run,
    }


def test_an_evaluation_shows_its_numbers_beside_the_baselines(printed):
    text = printed(tables.evaluation, evaluated())
    assert row(text, "hr@5") == ["0.1235", "0.1111 – 0.1334", "0.0001", "0.2500", "0.9000"]
    assert row(text, "ndcg@10") == ["1.0000", "0.0000 – 1.0000", "0.5000", "0.7500", "0.0500"]
    assert re.search(r"sasrec .*95 % interval .*popular .*popular, last 30 days .*item_knn", text)
    for word in ("22,363 users", "12,101 items", "198,502 interactions", "0123456789ab", "runs/a"):
        assert word in text
    assert "test of leave_one_out: 21,323 targets of 21,322 users (1,041 users only train)" in text


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ({"seen": "mask"}, "seen items masked"),
        ({"seen": "keep"}, "seen items kept"),
        ({"refit": False}, "trained on train;"),
        ({"refit": True}, "trained on train and valid (refit);"),
        ({"through": "index"}, "full ranking, through the index,"),
        ({"through": "exact"}, "full ranking, ties against the model"),
    ],
)
def test_an_evaluation_says_what_the_numbers_mean(printed, protocol, words):
    assert words in printed(tables.evaluation, evaluated(**protocol))


def test_targets_that_nobody_could_be_asked_about_are_counted(printed):
    result = evaluated()
    result["split"] |= {
        "users_train_only": 0,
        "test_targets_without_history": 1234,
        "valid_targets_without_history": 77,
    }
    text = printed(tables.evaluation, result)
    assert "users (1,234 targets without a history left out)" in text


def test_sessions_are_not_called_users_and_unknown_targets_are_counted(printed):
    result = evaluated(seen="keep")
    result["split"] = {"kind": "sessions", "part": "valid", "targets_never_trained": 1470}
    text = printed(tables.evaluation, result)
    assert "21,322 sessions (1,470 targets that training never saw); trained" in text
    assert "seen items kept" in text


def test_a_narrow_terminal_hides_no_number(printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(tables.evaluation, evaluated())
    for number in ("0.1235", "0.1111", "0.1334", "0.0001", "0.2500", "0.9000", "0.0500"):
        assert number in text
    assert "…" not in text


@pytest.mark.parametrize("name", ODD)
def test_names_and_folders_of_an_evaluation_are_printed_as_they_are(printed, name):
    text = printed(tables.evaluation, evaluated(name, f"runs/{name}"))
    assert text.startswith(f"{name}: 22,363 users")
    assert f"run folder: runs/{name}\n" in text


def compared(first: str = "runs/a", other: str = "runs/b", name: str = "shop") -> dict[str, Any]:
    def metrics(hr: float, mrr: float) -> dict[str, Any]:
        return {"hr@5": {"value": hr}, "mrr@10": {"value": mrr}}

    difference = {
        "hr@5": {"difference": 0.02346, "ci95": [0.01114, 0.03336]},
        "mrr@10": {"difference": -0.5, "ci95": [-1.0, 0.25]},
    }
    return {
        "data": {"name": name},
        "users": 21322,
        "runs": [
            {"run": first, "refit": False, "metrics": metrics(0.12346, 0.75)},
            {
                "run": other,
                "refit": True,
                "metrics": metrics(0.14692, 0.25),
                "difference_to_first": difference,
            },
        ],
    }


def test_a_comparison_shows_every_run_and_its_difference_to_the_first(printed):
    text = printed(tables.comparison, compared())
    assert row(text, "hr@5") == ["0.1235", "0.1469"]
    assert row(text, "mrr@10") == ["0.7500", "0.2500"]
    assert "+0.0235 [+0.0111, +0.0334]" in text
    assert "-0.5000 [-1.0000, +0.2500]" in text
    assert "shop, 21,322 users, test" in text
    assert re.search(r"runs/a .*runs/b \(refit\)", text)


def test_differences_clear_of_zero_and_no_others_are_bold(printed, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    result = compared()
    difference = result["runs"][1]["difference_to_first"]
    difference["mrr@10"] = {"difference": -0.7, "ci95": [-1.0, -0.25]}
    difference["hr@5"] = {"difference": 0.2, "ci95": [-0.1, 0.3]}
    bold = "\x1b[1m"
    text = printed(tables.comparison, result)
    assert f"{bold}-0.7000" in text
    assert "+0.2000" in text
    assert f"{bold}+0.2000" not in text
    assert f"{bold}+0.0235" in printed(tables.comparison, compared())


def test_runs_that_begin_alike_can_be_told_apart_on_a_narrow_terminal(printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = compared()
    first, other = result["runs"]
    result["runs"] = [
        {**row, "run": f"runs/sasrec-amazon-beauty-{number}"}
        for number, row in enumerate([first, other, other, other])
    ]
    text = printed(tables.comparison, result)
    assert "…" not in text
    assert all(number in text for number in ("0.1469", "-0.5000", "[-1.0000,", "+0.2500]"))


@pytest.mark.parametrize("name", ODD)
def test_names_and_folders_of_a_comparison_are_printed_as_they_are(printed, name):
    text = printed(tables.comparison, compared(f"one/{name}", f"two/{name}", f"of {name}"))
    for words in (f"one/{name} ", f"two/{name} (refit)", f"of {name}, 21,322 users"):
        assert words in text


def recommended(**changes: Any) -> dict[str, Any]:
    items = [
        {"item": 4711, "title": None, "score": 1234.5},
        {"item": "B00A", "title": "A Kettle", "score": -0.00049},
    ]
    return {"items": items, "unknown": [], "fallback": None, "short": None, **changes}


def test_recommendations_are_numbered_and_best_first(printed):
    text = printed(tables.recommendations, recommended())
    assert row(text, "1") == ["4711", "", "1234.500"]
    assert row(text, "2") == ["B00A", "A Kettle", "-0.000"]
    assert "skipped" not in text
    assert "popularity" not in text


def test_unknown_ids_and_the_fallback_are_said(printed):
    text = printed(tables.recommendations, recommended(unknown=["x", 7], fallback="popularity"))
    assert "not in the catalogue, skipped: x, 7" in text
    assert "no known item in the history: answered by popularity" in text
    assert "2 of 9: " in printed(tables.recommendations, recommended(short="2 of 9: no others"))


@pytest.mark.parametrize("word", ODD)
def test_ids_and_titles_are_printed_as_they_are(printed, word):
    items = [{"item": f"i{word}", "title": f"t{word}", "score": 1.0}]
    text = printed(tables.recommendations, recommended(items=items, unknown=[f"u{word}"]))
    assert row(text, "1") == [f"i{word}", f"t{word}", "1.000"]
    assert f"skipped: u{word}\n" in text


def test_a_long_title_does_not_cut_the_id_it_belongs_to(printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    raw = "0f8fad5b-d9cb-469f-a165-70867728950e"
    items = [{"item": raw, "title": "A Kettle With A Very Long Name " * 5, "score": 1.0}]
    assert raw in printed(tables.recommendations, recommended(items=items))


def test_values_are_printed_for_a_person(printed):
    facts = {"users": 22363, "recall@10": 0.987654321, "whole": True, "not": False, "when": None}
    text = printed(tables.pairs, {**facts, "length": {"min": 5, "mean": 8.8763}, "kind": "hnsw"})
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    assert [(name, value.strip()) for name, value in lines] == [
        ("users", "22,363"),
        ("recall@10", "0.987654"),
        ("whole", "yes"),
        ("not", "no"),
        ("when", "–"),
        ("length", "min 5  mean 8.8763"),
        ("kind", "hnsw"),
    ]


@pytest.mark.parametrize("word", ODD)
def test_facts_are_printed_as_they_are(printed, word):
    text = printed(tables.pairs, {"out": f"o{word}", "inner": {"name": f"n{word}"}})
    assert f"o{word} " in text
    assert f"name n{word} " in text


def source(**changes: Any) -> dict[str, Any]:
    counts = {"users": 943, "items": 1682, "interactions": 100000}
    return {"name": "movielens-100k", "title": "Films", **counts, "found": "/data/ml", **changes}


def test_sources_say_what_they_hold_and_where_they_are(printed):
    unknown = source(name="amazon", users=None, items=None, interactions=None, found=None)
    text = printed(tables.sources, {"sources": [source(), unknown]})
    counts = "943 users, 1,682 items, 100,000 interactions"
    assert row(text, "movielens-100k") == [f"Films: {counts}", "/data/ml"]
    assert row(text, "amazon") == ["Films", "to download"]


@pytest.mark.parametrize("word", ODD)
def test_folders_of_sources_are_printed_as_they_are(printed, word):
    text = printed(tables.sources, {"sources": [source(found=f"/data/{word}")]})
    assert row(text, "movielens-100k")[-1] == f"/data/{word}"


@pytest.mark.parametrize(("kind", "entries"), [("models", model_list()), ("losses", loss_list())])
def test_models_and_losses_are_listed_with_every_setting(printed, kind, entries):
    words = " ".join(printed(tables.catalogue, {kind: entries}).split())  # long lines are wrapped
    for entry in entries:
        assert f"{entry['name']} {entry['title']}" in words
        for setting in entry["settings"]:
            assert f"{setting['name']} = {setting['default']} ({setting['type']})" in words


def test_recipes_are_listed_with_their_settings(printed):
    entries = recipe_list()
    text = "".join(printed(tables.catalogue, {"recipes": entries}).split())
    for entry in entries:
        assert entry["name"] in text
        assert f"model.dim={entry['settings']['model']['dim']}" in text
        assert f"trainer.lr={entry['settings']['trainer']['lr']}" in text


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on users that walk through the items of odd names, one after the other."""
    folder = tmp_path_factory.mktemp("shop")
    size = len(ODD)
    places = [(user + step) % size for user in range(size) for step in range(4)]
    log = pa.table(
        {
            "user": [f"user {name}" for name in ODD for _ in range(4)],
            "item": [f"i{ODD[place]}" for place in places],
            "time": list(range(4)) * size,
        }
    )
    prepare(log, folder / "data")
    return train(folder / "data", "item_knn", folder / "run")


def test_examples_show_what_users_chose_last_and_what_comes_next(printed, shop):
    dataset = SequenceDataset.load(shop.parent / "data")
    lines = printed(tables.examples, shop, dataset, 3).splitlines()
    retriever = Retriever.load(shop)
    shown = [number for number, line in enumerate(lines) if line.startswith("user ")]
    assert len(shown) == 3
    for number in shown:
        user = lines[number].removeprefix("user ").removesuffix(" chose last:")
        history = retriever.vocab.decode(dataset[dataset.users.to_pylist().index(user)])
        assert [line.strip() for line in lines[number + 1 : number + 4]] == history[-3:]
        wanted = [f"{i}. {item}" for i, item in enumerate(retriever.recommend(history, 3).items, 1)]
        assert [line.strip() for line in lines[number + 5 : number + 8]] == wanted


def test_examples_are_asked_with_the_times_of_their_users(printed, shop, tmp_path):
    data = shop.parent / "data"
    settings = {"model.time": "gaps", "model.dim": 8, "trainer.epochs": 0}
    run = train(data, "lssl_rec", tmp_path / "run", settings=settings)
    assert printed(tables.examples, run, SequenceDataset.load(data), 3).count("chose last:") == 3
