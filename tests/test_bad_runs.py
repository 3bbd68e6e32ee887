"""Run folders that are damaged, mixed up or cut short: named with the remedy, nothing lost."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from commands import contents, done, recsys, refused
from safetensors import SafetensorError

from recsys import checkpoint

SMALL = [
    word
    for setting in (
        "model.dim=8",
        "model.num_layers=1",
        "trainer.batch_size=16",
        "trainer.epochs=3",
    )
    for word in ("--set", setting)
]
EVERYTHING = {
    "eval": ["eval", "run"],
    "recommend": ["recommend", "run", "--history", "i1,i2"],
    "all users": ["recommend", "run", "--all-users", "--out", "recs.parquet"],
    "compare": ["compare", "popular", "run"],
    "index": ["index", "run"],
}


def train(model: str, data: Path, out: Path, *words: object) -> None:
    settings = SMALL if model == "sasrec" else []
    done("train", "--model", model, "--data", data, "--out", out, *settings, *words)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` (with an index), `popular` and `wider` on `data`; `run-15`, `run-9` on other items."""
    folder = tmp_path_factory.mktemp("shop")
    for name, items in (("data", 12), ("data-15", 15), ("data-9", 9)):
        rows = (
            f"u{user},i{(user + step) % items},{step}\n" for user in range(30) for step in range(6)
        )
        (folder / f"{name}.csv").write_text("user,item,time\n" + "".join(rows))
        done("data", "prepare", folder / f"{name}.csv", "--out", folder / name)
        train("sasrec", folder / name, folder / name.replace("data", "run"))
    train("sasrec", folder / "data", folder / "wider", "--set", "model.dim=16")
    train("popular", folder / "data", folder / "popular")
    done("index", folder / "run")
    return folder


@pytest.fixture
def place(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shop to do harm in; commands run there."""
    shutil.copytree(shop, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


GONE = object()


def rewrite(file: Path, key: str, value: object) -> None:
    """Change, or take away, the value at `a.b` of a JSON file; an empty key is the whole of it."""
    tree = {"": json.loads(file.read_text())}
    *sections, name = ["", *key.split(".")] if key else [""]
    part: Any = tree
    for section in sections:
        part = part[section]
    part[name] = value
    if value is GONE:
        del part[name]
    file.write_text(json.dumps(tree[""]))


HARM: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "other": lambda file: file.write_bytes(b"\x00\xff" * 500),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "items.parquet"])
def test_a_damaged_run_is_named_by_every_command(place: Path, file: str, harm: str):
    HARM[harm](Path("run", file))
    before = contents(place)
    commands = set(EVERYTHING)
    if file == "items.parquet":
        commands -= {"eval", "compare", "index"}  # these do without it
    for command in commands:
        message = refused(*EVERYTHING[command])
        assert "run" in message
        assert file in message
    assert contents(place) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", []),
        ("", {}),
        ("model", GONE),
        ("model", "sasrec"),
        ("model.name", 7),
        ("model.name", "sasrek"),
        ("model.dim", "wide"),
        ("model.colour", "red"),
        ("split", GONE),
        ("split", []),
        ("split.kind", "by_moon"),
        ("dataset", GONE),
        ("dataset.path", GONE),
        ("dataset.path", 5),
        ("dataset.fingerprint", GONE),
        ("dataset.items", "many"),
        ("refit", GONE),
    ],
)
def test_a_config_of_wrong_values_is_refused(place: Path, key: str, value: object):
    rewrite(Path("run/config.json"), key, value)
    before = [Path("run", file).read_bytes() for file in ("config.json", "model.safetensors")]
    assert "run/config.json" in refused("eval", "run")
    for words in (*EVERYTHING.values(), ["train", "--resume", "--out", "run"]):
        answer = recsys(*words)
        assert answer.code == 0 or (answer.code == 2 and "error: " in answer.err)
    after = [Path("run", file).read_bytes() for file in ("config.json", "model.safetensors")]
    assert after == before


@pytest.mark.parametrize(("key", "value"), [("dataset.items", 10**15), ("model.dim", 10**12)])
def test_sizes_that_no_memory_holds_are_refused(place: Path, key: str, value: int):
    rewrite(Path("run/config.json"), key, value)
    for words in (EVERYTHING["eval"], EVERYTHING["recommend"]):
        assert "run/config.json is damaged: " in refused(*words)


def test_a_config_of_endless_depth_is_refused(place: Path):
    Path("run/config.json").write_text("[" * 100_000)
    assert "run/config.json is damaged" in refused("eval", "run")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", "{}"),
        ("metrics.json", "[]"),
        ("history.jsonl", "[]"),
        ("history.jsonl", "7"),
    ],
)
def test_results_that_are_damaged_are_named(place: Path, file: str, content: str):
    Path("run", file).write_text(content)
    for form in ([], ["--json"]):
        message = refused("train", "--resume", "--out", "run", *form)
        assert f"run/{file} is damaged" in message


@pytest.mark.parametrize("other", ["popular", "wider", "run-15", "run-9"])
def test_weights_of_another_model_or_catalogue_are_refused(place: Path, other: str):
    shutil.copy(Path(other, "model.safetensors"), "run/model.safetensors")
    for command in EVERYTHING.values():
        message = refused(*command)
        assert "run/model.safetensors" in message
        assert "does not belong to model sasrec" in message or "another catalogue" in message


@pytest.mark.parametrize("other", ["run-15", "run-9"])
def test_a_catalogue_of_another_size_is_refused(place: Path, other: str):
    shutil.copy(Path(other, "items.parquet"), "run/items.parquet")
    for command in ("recommend", "all users"):
        assert "run/items.parquet" in refused(*EVERYTHING[command])


@pytest.mark.parametrize("other", ["data-15", "data-9"])
def test_data_that_the_run_was_not_trained_on_is_refused(place: Path, other: str):
    for command in ("eval", "all users"):
        message = refused(*EVERYTHING[command], "--data", other)
        assert "run was trained on" in message
        assert other in message
    assert not Path("recs.parquet").exists()


def test_runs_on_other_data_are_not_compared(place: Path):
    message = refused("compare", "run", "run-9")
    assert "run-9 cannot be compared with run: its dataset.fingerprint is" in message


@pytest.mark.parametrize("command", ["eval", "all users", "compare"])
def test_data_that_is_gone_is_named(place: Path, command: str):
    for run in ("run", "popular"):
        rewrite(Path(run, "config.json"), "dataset.path", "/no/data")
    assert "/no/data" in refused(*EVERYTHING[command])
    if command != "compare":
        done(*EVERYTHING[command], "--data", "data")


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", ["index.faiss", "index.json"])
def test_a_damaged_index_is_to_be_built_again(place: Path, file: str, harm: str):
    HARM[harm](Path("run", file))
    for words in (["eval", "run"], ["recommend", "run", "--history", "i1"]):
        message = refused(*words, "--through", "index")
        assert "run" in message
        assert "recsys index run --type" in message
        done(*words)
    done("index", "run")
    done("eval", "run", "--through", "index")


@pytest.mark.parametrize(("key", "value"), [("", []), ("kind", "x"), ("dim", GONE), ("dim", "x")])
def test_an_index_description_of_wrong_values_is_refused(place: Path, key: str, value: object):
    rewrite(Path("run/index.json"), key, value)
    assert "run/index.json is damaged" in refused("eval", "run", "--through", "index")


def test_an_index_of_other_weights_is_to_be_built_again(place: Path):
    train("sasrec", Path("data"), Path("other"), "--seed", 5)
    shutil.copy("other/model.safetensors", "run/model.safetensors")
    assert "built for other weights" in refused("eval", "run", "--through", "index")


def test_a_model_without_vectors_has_no_index(place: Path):
    before = contents(place)
    assert "popular" in refused("index", "popular")
    assert "recsys index popular" in refused("eval", "popular", "--through", "index")
    assert contents(place) == before


STATE = Path("run/state/trainer.safetensors")
FOREIGN: dict[str, Callable[[], object]] = {
    **{
        harm: lambda change=change: change(STATE)
        for harm, change in HARM.items()
        if harm != "missing"
    },
    "of other settings": lambda: shutil.copy("wider" / STATE.relative_to("run"), STATE),
    "of another catalogue": lambda: shutil.copy("run-9" / STATE.relative_to("run"), STATE),
    "weights": lambda: shutil.copy("run/model.safetensors", STATE),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_state_that_does_not_fit_is_refused_and_harms_nothing(place: Path, what: str):
    FOREIGN[what]()
    Path("run/metrics.json").unlink()
    before = contents(place)
    message = refused("train", "--resume", "--out", "run")
    assert str(STATE) in message
    assert contents(place) == before


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", ["metrics.json", "history.jsonl"])
def test_resuming_a_complete_run_survives_damage_to_its_records(place: Path, file: str, harm: str):
    HARM[harm](Path("run", file))
    weights = Path("run/model.safetensors").read_bytes()
    answer = recsys("train", "--resume", "--out", "run")
    assert answer.code == 0 or f"run/{file}" in answer.err
    assert Path("run/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval run --k 0", "--k takes whole numbers from 1, got 0"),
        ("eval run --k 99999999999999999999", "--k takes whole numbers up to 1000000000"),
        ("recommend run --history i1 --data data", "recommend takes --history"),
        ("eval run --k 5,x", "--k takes whole numbers, as in 5,10,20; got '5,x'"),
        ("eval run --k 1.5", "got '1.5'"),
        ("compare popular run --k -1", "--k takes whole numbers from 1"),
        ("recommend run --history i1 -k 0", "k must be at least 1, got 0"),
        ("recommend run --history i1 --times soon", "--times takes whole numbers"),
        ("recommend run --history i1 --times 1,2", "one time for each item of a history"),
        ("recommend run --all-users --out r.parquet --times 1", "--history ID,ID,… (and --times)"),
        ("recommend run --all-users --out r.parquet -k 0", "-k takes a whole number from 1, got 0"),
        ("eval data", "data is not a run folder: it has no config.json"),
        ("eval nowhere", "nowhere is not a run folder"),
        ("recommend data.csv --history i1", "data.csv"),
        ("eval run --data run", "run is not a prepared data set"),
        ("train --model popular --data data --out run", "run holds a run already"),
        ("train --model popular --data data --set data.min_user_events=2", "is prepared already"),
    ],
)
def test_what_cannot_be_asked_is_refused(place: Path, words: str, message: str):
    before = contents(place)
    assert message in refused(*words.split())
    assert contents(place) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("words", ["eval run", "train --model sasrec --data data --out new"])
def test_a_device_that_is_not_there_is_refused(place: Path, words: str):
    assert "no CUDA device" in refused(*words.split(), "--device", "cuda")
    assert not Path("new").exists()


def disk_full(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_stops_a_training_that_goes_on_later(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    save, saved = checkpoint.save_file, []

    def full_after_some(*arguments: object, **options: object) -> None:
        if len(saved) == 4:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        saved.append(save(*arguments, **options))

    words = ("train", "--model", "sasrec", "--data", "data", "--out", "new", *SMALL)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full_after_some)
        message = refused(*words, code=1)
    assert "no space left to write new/" in message
    assert not list(Path("new").rglob("*.part"))
    done("train", "--resume", "--out", "new")
    assert Path("new/model.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()


@pytest.mark.parametrize("file", [checkpoint.CONFIG, checkpoint.HISTORY, checkpoint.METRICS])
def test_a_full_disk_under_any_record_is_reported(
    place: Path, monkeypatch: pytest.MonkeyPatch, file: str
):
    write = Path.write_text

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name == f"{file}.part":
            disk_full()
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    words = ("train", "--model", "sasrec", "--data", "data", "--out", "new", *SMALL)
    assert f"no space left to write new/{file}" in refused(*words, code=1)
    assert not list(Path("new").rglob("*.part"))


def test_a_full_disk_leaves_the_recommendations_of_before(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    Path("recs.parquet").write_bytes(b"those of before")
    before = contents(place)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", disk_full)
    message = refused(*EVERYTHING["all users"], code=1)
    assert "no space left to write recs.parquet.parts/part-00000.parquet; what was" in message
    assert contents(place) == before
