"""Pretraining on several shops, and what starts from it: through the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import contents, done, refused
from safetensors.torch import load_file

from recsys.checkpoint import load_model

TINY = [
    *("--set", "model.dim=16", "--set", "model.hidden_dim=32", "--set", "model.num_layers=1"),
    *("--set", "model.max_tokens=40", "--set", "model.window=8", "--set", "trainer.batch_size=16"),
]


def shop(folder: Path, name: str, kinds: list[str]) -> str:
    """People go through the things of one kind in order; titles name both."""
    log, items = folder / f"{name}.csv", folder / f"{name}-items.csv"
    rows = [
        f"{kind}-{user},{kind}-{(user + step) % 6}"
        for kind in kinds
        for user in range(12)
        for step in range(5)
    ]
    log.write_text("\n".join(["user,item", *rows]) + "\n")
    titles = [f"{kind}-{n},shiny {kind} number {n}" for kind in kinds for n in range(6)]
    items.write_text("\n".join(["item,title", *titles]) + "\n")
    done("data", "prepare", str(log), "--items", str(items), "--out", folder / f"data-{name}")
    return str(folder / f"data-{name}")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("shops")
    return shop(folder, "one", ["cream", "hose"]), shop(folder, "two", ["lamp", "cream"])


@pytest.fixture
def shops(
    prepared: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """Two data sets, which are read only, and a folder of a test's own to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return prepared


def test_a_training_starts_from_a_pretrained_encoder_and_its_sizes(shops: tuple[str, str]):
    one, two = shops
    data = ["--data", one, "--data", two]
    found = done("pretrain", *data, "--out", "pre", *TINY, "--set", "trainer.epochs=2", "--json")
    assert found.json["data"]["name"] == "one+two"
    assert found.json["data"]["items"] == 24
    assert sorted(path.name for path in Path("pre/encoder").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    start = ["--set", "model.encoder=pre", "--set", "model.max_tokens=40"]
    as_it_is = ["--set", "trainer.epochs=0"]
    words = ["train", "--model", "recformer", "--data", one, *start]
    zero = done(*words, "--out", "zero", *as_it_is, "--json")
    config = json.loads(Path("zero/config.json").read_text())["model"]
    assert (config["dim"], config["num_layers"], config["hidden_dim"]) == (16, 1, 32)
    assert zero.json["metrics"].keys() == found.json["metrics"].keys()
    assert Path("zero/history.jsonl").read_text() == ""
    norm_V = load_model(Path("zero")).item_vectors()[1:].norm(dim=1)
    torch.testing.assert_close(norm_V, torch.full_like(norm_V, 1 / 0.05))
    tuned = ["--set", "trainer.epochs=1", "--set", "trainer.batch_size=16"]
    done(*words, "--out", "run", *tuned)
    over = done("eval", "run", "--data", two, "--json").json
    assert over["protocol"]["transfer_from"] == "one"
    assert over["data"]["items"] == 12


def test_a_pretraining_that_is_gone_on_with_leaves_its_encoder(shops: tuple[str, str]):
    data = ["--data", shops[0], "--data", shops[1], *TINY]
    done("pretrain", *data, "--out", "pre", "--set", "trainer.epochs=1")
    shutil.rmtree("pre/encoder")
    done("train", "--resume", "--out", "pre", "--set", "trainer.epochs=2")
    done("pretrain", *data, "--out", "whole", "--set", "trainer.epochs=2")
    assert list(contents(Path("pre/encoder")).values()) == list(
        contents(Path("whole/encoder")).values()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "sasrec"], "models that read texts"),
        (["--set", "loss.name=softmax"], "pretrain learns by mlm_contrastive, not by softmax"),
        (["--model", "sasrec", "--set", "loss.name=softmax"], "pretrain learns by mlm_contrastive"),
    ],
)
def test_a_pretraining_that_would_leave_no_encoder_is_refused(
    shops: tuple[str, str], words: list[str], message: str
):
    assert message in refused("pretrain", "--data", shops[0], "--out", "pre", *words)
    assert not Path("pre").exists()


def test_frozen_layers_stay_as_the_encoder_has_them(shops: tuple[str, str]):
    short = ["--set", "trainer.epochs=1", "--set", "trainer.batch_size=16"]
    start = ["--set", "model.max_tokens=40", "--set", "model.num_layers=2"]
    done("pretrain", "--data", shops[0], "--out", "pre", *TINY, *start, *short)
    words = ["train", "--model", "recformer", "--data", shops[0], "--set", "model.encoder=pre"]
    done(*words, "--out", "run", *start[:2], *short, "--set", "model.frozen_layers=1")
    before = load_file("pre/encoder/model.safetensors")
    after = load_file("run/model.safetensors")
    same = {name for name, x in before.items() if torch.equal(x, after[f"encoder.{name}"])}
    first = ("tokens", "positions", "types", "items", "norm", "blocks.0")
    # A constant in all keys moves all scores of a row alike: its gradient is 0 but for rounding.
    assert same - {"blocks.1.attention.key.bias"} == {n for n in before if n.startswith(first)}
    done(*words, "--out", "map", *start[:2], *short, "--set", "model.frozen_layers=2")
    alone = load_file("map/model.safetensors")
    moved = {name for name, x in before.items() if not torch.equal(x, alone[f"encoder.{name}"])}
    assert moved == {"adaptor.weight"}
    said = refused(*words, "--out", "none", *short, "--set", "model.frozen_layers=3")
    assert "model.frozen_layers: pre has 2 layers, got 3" in " ".join(said.split())
    assert not Path("none").exists()


def test_a_training_that_is_resumed_is_the_same(shops: tuple[str, str]):
    data = ["--data", shops[0], *TINY, "--model", "recformer", "--set", "trainer.epochs=2"]
    done("train", *data, "--out", "whole")
    done("train", *data, "--out", "again")
    read = lambda run: Path(run, "model.safetensors").read_bytes()  # noqa: E731
    assert read("whole") == read("again")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --model recformer --data bare", "nothing is known of the items in words"),
        ("train --model sasrec --data bare --set model.item_encoder=text", "in words"),
        ("pretrain --data bare --out pre", "nothing is known of the items in words"),
        ("pretrain --data one --data one --out pre", "must have different names"),
        ("pretrain --model sasrec --data one --out pre", "is for models that read texts"),
        ("train --model recformer --data one --set model.encoder=bare", "is not a text encoder"),
        (
            "train --model recformer --data one --set model.encoder=no/such/place",
            "neither the folder",
        ),
        (
            "train --model sasrec --data one --set loss.name=mlm_contrastive",
            "read texts (recformer)",
        ),
        ("train --model sasrec --data one --refit --set trainer.epochs=0", "trainer.epochs is 0"),
        (
            "train --model gru4rec --data one --item-vectors no.parquet"
            " --set model.item_encoder=text",
            "does not exist",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(shops: tuple[str, str], words: str, message: str):
    Path("bare.csv").write_text(
        "user,item\n" + "".join(f"{u},{i}\n" for u in "ab" for i in range(4))
    )
    done("data", "prepare", "bare.csv", "--out", "bare")
    words = words.replace("--data one", f"--data {shops[0]}")
    said = " ".join(refused(*words.split()).split())
    assert message in said
    assert not Path("runs").exists()
