"""Items that come after training: found by their text, whatever happens to the others."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shops import KINDS, NEW, SMALL, item, shop_folder

from recsys.data.prepare import DataConfig
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError
from recsys.eval.report import evaluate_run
from recsys.retrieval import Retriever
from recsys.run import prepare, train


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    data = shop_folder(folder)
    for encoder in ("id", "text", "id+text"):
        settings = {**SMALL, "model.item_encoder": encoder}
        train(data, "sasrec", folder / encoder, settings=settings)
    return folder


@pytest.mark.parametrize("encoder", ["text", "id+text"])
def test_a_new_item_is_recommended_by_its_text_at_once(shop: Path, encoder: str):
    retriever = Retriever.load(shop / encoder)
    before = retriever.recommend(["cream-1", "cream-2"], k=24, exclude_seen=False)
    assert retriever.upsert_items(NEW) == 2
    found = retriever.recommend(["cream-1", "cream-2"], k=26, exclude_seen=False)
    place = found.items.index
    assert place("cream-new") < place("hose-new")
    assert found.titles[place("cream-new")] == "shiny cream"
    old = [(i, s) for i, s in zip(found.items, found.scores, strict=True) if "new" not in i]
    assert [name for name, _ in old] == before.items
    assert [score for _, score in old] == pytest.approx(before.scores, abs=1e-5)


def test_a_new_item_may_stand_in_a_history(shop: Path):
    retriever = Retriever.load(shop / "text")
    assert retriever.recommend(["hose-new"]).fallback == "popularity"
    retriever.upsert_items(NEW)
    found = retriever.recommend(["hose-new"], k=5)
    assert found.fallback is None
    assert {name.partition("-")[0] for name in found.items[:3]} == {"hose"}


def test_a_known_item_takes_its_new_text_and_keeps_what_is_not_said_again(shop: Path):
    retriever = Retriever.load(shop / "text")
    assert retriever.upsert_items(pa.table({"item": ["lamp-0"], "title": ["shiny cream"]})) == 0
    found = retriever.recommend(["cream-1", "cream-2"], k=24)
    assert found.items.index("lamp-0") < found.items.index("lamp-1")
    assert retriever.titles(["lamp-0", "lamp-1"]) == ["shiny cream", "shiny lamp number1"]
    said_nothing = Retriever.load(shop / "text")
    said_nothing.upsert_items(pa.table({"item": ["lamp-0"]}))
    plain = Retriever.load(shop / "text").recommend(["cream-1"], k=24)
    assert said_nothing.recommend(["cream-1"], k=24).items == plain.items


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (pd.DataFrame({"id": ["a"], "title": ["x"]}), "no column 'item'"),
        (pd.DataFrame({"item": ["a", "a"], "title": ["x", "y"]}), "name an id twice"),
        (pd.DataFrame({"item": ["a", None], "title": ["x", "y"]}), "without an id"),
        (pa.table({"item": pa.array([], pa.string())}), "are empty"),
        (pa.table({"item": ["a"], "title": [["x"]]}), "column 'title' of items must be string"),
        ([{"item": "a"}], "must be a pandas DataFrame or an Arrow table"),
    ],
)
def test_items_that_cannot_be_served_are_refused_and_nothing_changes(shop: Path, items, message):
    retriever = Retriever.load(shop / "text")
    with pytest.raises(InputError, match=message):
        retriever.upsert_items(items)
    assert len(retriever.vocab) == 24


def vectors(retriever: Retriever, *names: str) -> np.ndarray:
    numbers = retriever.vocab.encode(list(names))[0]
    return retriever.model.item_vectors()[numbers].detach().numpy()


def test_an_item_of_which_no_word_is_known_is_taken_beside_others_and_taken_again(
    shop: Path, tmp_path: Path
):
    retriever = Retriever.load(shop / "text", journal=tmp_path / "journal")
    retriever.upsert_items(pa.table({"item": ["a", "b"], "title": ["shiny soap", None]}))
    retriever.upsert_items(pa.table({"item": ["a"], "brand": ["shiny"]}))
    wanted = vectors(retriever, "a", "b")
    with pytest.raises(InputError, match="nothing is known of the items in words"):
        retriever.upsert_items(pa.table({"item": ["c"], "title": pa.array([None], pa.string())}))
    for _ in range(2):
        assert retriever.reload(shop / "text").reason is None
        assert vectors(retriever, "a", "b") == pytest.approx(wanted, abs=1e-6)
        retriever.compact()
        retriever.close()
        retriever = Retriever.load(shop / "text", journal=tmp_path / "journal")
    retriever.close()


def test_words_in_a_column_of_their_own_hold_until_the_item_is_said_again(
    shop: Path, tmp_path: Path
):
    retriever = Retriever.load(shop / "text", journal=tmp_path / "journal")
    for row in (
        {"item": "a", "title": "shiny soap", "note": "hose", "code": b"hose", "count": "many"},
        {"item": "b", "title": "shiny soap", "note": "hose", "count": 7},
        {"item": "a", "title": "shiny soap"},
    ):
        retriever.upsert_items(pa.Table.from_pylist([row]))
    wanted = vectors(retriever, "a", "b")
    assert not np.allclose(*wanted)
    plain = Retriever.load(shop / "text")
    plain.upsert_items(pa.table({"item": ["a"], "title": ["shiny soap"]}))
    assert wanted[0] == pytest.approx(vectors(plain, "a")[0], abs=1e-6)
    for _ in range(3):
        retriever.close()
        retriever = Retriever.load(shop / "text", journal=tmp_path / "journal")
        assert vectors(retriever, "a", "b") == pytest.approx(wanted, abs=1e-6)
        retriever.compact()
    retriever.close()


def test_vectors_of_whole_numbers_and_of_others_are_taken_again(shop: Path, tmp_path: Path):
    names = [f"{kind}-{n}" for kind in KINDS for n in range(6)]
    rows = np.random.default_rng(0).normal(size=(24, 3)).tolist()
    pq.write_table(pa.table({"item": names, "v": rows}), tmp_path / "v.parquet")
    settings = {**SMALL, "trainer.epochs": 1, "trainer.validate_every": 1}
    settings |= {"model.item_encoder": "text", "model.item_vectors": str(tmp_path / "v.parquet")}
    run = train(shop / "data", "sasrec", tmp_path / "run", settings=settings)
    retriever = Retriever.load(run, journal=tmp_path / "journal")
    retriever.upsert_items(pa.table({"item": ["a"], "vector": [[1, 0, 0]]}))
    retriever.upsert_items(pa.table({"item": ["b"], "title": ["x"], "vector": [[0.5, 0, 0]]}))
    wanted = vectors(retriever, "a", "b")
    assert retriever.reload(run).reason is None
    retriever.close()
    retriever = Retriever.load(run, journal=tmp_path / "journal")
    assert vectors(retriever, "a", "b") == pytest.approx(wanted, abs=1e-6)
    retriever.close()


def test_beside_a_text_that_is_all_there_is_other_words_do_not_count(tmp_path: Path):
    (tmp_path / "items.csv").write_text("item,text\na,alpha one\nb,beta one\nc,alpha two\n")
    log = pa.table({"user": list("uuuuvvvv"), "item": list("abcabcab")})
    prepare(log, tmp_path / "data", DataConfig(items=str(tmp_path / "items.csv")))
    settings = {"model.item_encoder": "text", "trainer.epochs": 1, "model.dim": 8}
    retriever = Retriever.load(
        train(tmp_path / "data", "sasrec", tmp_path / "run", settings=settings)
    )
    before = vectors(retriever, "a", "b")
    retriever.upsert_items(pa.table({"item": ["a"], "title": ["gold"]}))
    assert vectors(retriever, "a") == pytest.approx(before[:1], abs=1e-6)
    retriever.upsert_items(pa.table({"item": ["new"], "title": ["gold"], "text": ["beta one"]}))
    assert vectors(retriever, "new") == pytest.approx(before[1:], abs=1e-6)


def test_a_model_that_knows_items_by_number_refuses_new_ones(shop: Path):
    with pytest.raises(InputError, match=r"train it with model.item_encoder=text or id\+text"):
        Retriever.load(shop / "id").upsert_items(NEW)


def test_a_text_model_is_tried_on_another_catalogue(shop: Path, tmp_path: Path):
    other = SequenceDataset.load(shop_folder(tmp_path, ["cream", "hose"]))
    found = evaluate_run(shop / "text", dataset=other)
    assert found["protocol"]["transfer_from"] == "dataframe"
    assert found["data"]["items"] == 12
    # The histories of a kind are followed by things of that kind: 6 of 12 items.
    assert found["metrics"]["hr@5"]["value"] > 0.9
    for encoder in ("id", "id+text"):
        with pytest.raises(InputError, match="was trained on data"):
            evaluate_run(shop / encoder, dataset=other)


def test_baselines_beside_a_refit_do_not_know_the_valid_targets(shop: Path, tmp_path: Path):
    other = SequenceDataset.load(shop_folder(tmp_path, ["cream", "hose"]))
    settings = {**SMALL, "model.item_encoder": "text", "trainer.epochs": 1}
    train(shop / "data", "sasrec", tmp_path / "refit", settings=settings, refit=True)
    ks = (1, 5)
    refit, alone = (
        evaluate_run(run, dataset=other, part="valid", ks=ks)
        for run in (tmp_path / "refit", shop / "text")
    )
    assert refit["baselines"] == alone["baselines"]


def test_targets_that_training_never_saw_have_a_section_of_their_own(tmp_path: Path):
    rows = [
        (f"u{user}", item("cream", (user + step) % 6)) for user in range(12) for step in range(5)
    ]
    rows += [(f"u{user}", "cream-cold") for user in range(3)]
    users, items = zip(*rows, strict=True)
    prepare(pa.table({"user": users, "item": items}), tmp_path / "data")
    train(tmp_path / "data", "sasrec", tmp_path / "run", settings={**SMALL, "trainer.epochs": 1})
    found = evaluate_run(tmp_path / "run", ks=(1, 5))
    cold = found["cold"]
    assert cold["targets"] == found["split"]["targets_never_trained"] == 3
    assert set(cold["metrics"]) == set(found["metrics"])
    assert cold["baselines"]["popular"]["hr@1"] == 0
