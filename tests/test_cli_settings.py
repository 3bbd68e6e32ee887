"""The recsys command: settings, seeds and lists, and what it says of words it does not know."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Answer, done, recsys, sets

from recsys.training.losses import LOSSES, PAIR_LOSSES

USERS, ITEMS, LENGTH = 40, 12, 6
QUICK = {"model.dim": 8, "model.num_layers": 1, "trainer.batch_size": 16, "trainer.epochs": 2}


def config(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "config.json").read_text())


def write_log(path: Path, header: str = "user,item,time") -> Path:
    rows = (
        f"u{user},i{(user + step) % ITEMS},{step}\n"
        for user in range(USERS)
        for step in range(LENGTH)
    )
    path.write_text(header + "\n" + "".join(rows))
    return path


def train(
    data: Path, out: str | Path, *words: object, settings: dict[str, object] = QUICK
) -> Answer:
    model = () if {"--recipe", "--model"} & {*words} else ("--model", "sasrec")
    return done("train", *model, "--data", data, "--out", out, *words, *sets(settings))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    done("data", "prepare", write_log(folder / "log.csv"), "--out", folder / "data")
    train(folder / "data", folder / "run")
    return folder / "data"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_same_seed_gives_the_same_weights(data: Path):
    for run, seed in (("one", 7), ("two", 7), ("other", 8)):
        train(data, run, "--seed", seed)
    one, two, other = (
        Path(run, "model.safetensors").read_bytes() for run in ("one", "two", "other")
    )
    assert one == two
    assert one != other
    assert config("one")["seed"] == 7


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("s.toml", '[model]\ndim = 4\ndropout = 0.1\n[loss]\nname = "bce"\n'),
        ("s.json", '{"model": {"dim": 4, "dropout": 0.1}, "loss": {"name": "bce"}}'),
    ],
)
def test_a_settings_file_is_read_and_set_wins_over_it(data: Path, file: str, text: str):
    Path(file).write_text(text)
    train(data, "run", "--config", file)
    found = config("run")
    assert (found["model"]["dim"], found["model"]["dropout"]) == (8, 0.1)
    assert found["loss"]["name"] == "bce"


def test_set_wins_over_a_recipe(data: Path):
    train(data, "run", "--recipe", "sasrec_sample", settings={"trainer.epochs": 1, "model.dim": 8})
    found = config("run")
    assert (found["model"]["dim"], found["trainer"]["epochs"]) == (8, 1)
    assert found["model"]["dropout"] == 0.3
    assert found["trainer"]["batch_size"] == 128


@pytest.mark.parametrize("loss", [loss.name for loss in PAIR_LOSSES])
def test_every_loss_trains(data: Path, loss: str):
    model = "bert4rec" if loss == "cloze" else "sasrec"
    # top1_max starts near 1 and cannot fall below 1/2.
    falls_to = 0.95 if loss == "top1_max" else 0.9
    epochs = 20 if loss == "cloze" else 6
    learns = {**QUICK, "trainer.lr": 0.01, "trainer.epochs": epochs}
    train(data, "run", "--model", model, settings={**learns, "loss.name": loss})
    lines = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < falls_to * lines[0]["loss"]


def test_cloze_is_refused_for_a_model_that_hides_nothing(data: Path):
    settings = sets({"loss.name": "cloze"})
    answer = recsys("train", "--model", "sasrec", "--data", data, "--out", "run", *settings)
    assert answer.code == 2
    assert "loss.name=cloze is for models that hide items (bert4rec)" in answer.err
    assert not Path("run").exists()


@pytest.mark.parametrize("model", ["sasrec", "popular", "item_knn"])
def test_refit_is_said_wherever_numbers_are(data: Path, model: str):
    words = ("train", "--model", model, "--data", data)
    settings = sets(QUICK) if model == "sasrec" else []
    done(*words, "--out", "plain", *settings)
    said = done(*words, "--out", "refit", "--refit", *settings)
    assert "trained on train and valid (refit)" in said.out
    assert "trained on train and valid (refit)" in done("eval", "refit").out
    assert "refit (refit)" in " ".join(done("compare", "plain", "refit").out.split())
    for run, refit in (("plain", False), ("refit", True)):
        assert config(run)["refit"] is refit
        assert json.loads(Path(run, "metrics.json").read_text())["protocol"]["refit"] is refit
        assert done("eval", run, "--json").json["protocol"]["refit"] is refit
    rows = done("compare", "plain", "refit", "--json").json["runs"]
    assert [row["refit"] for row in rows] == [False, True]


def test_a_refit_trains_on_the_validation_items_for_the_best_number_of_epochs(data: Path):
    train(data, "run", "--refit", settings={**QUICK, "trainer.epochs": 4})
    records = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    first = [record for record in records if record["stage"] == "train"]
    again = [record for record in records if record["stage"] == "refit"]
    best = max(first, key=lambda record: record["valid"]["ndcg@10"])["epoch"]
    assert [record["epoch"] for record in again] == list(range(1, best + 1))
    assert {record["interactions"] for record in first} == {USERS * (LENGTH - 2)}
    assert {record["interactions"] for record in again} == {USERS * (LENGTH - 1)}
    assert not any("valid" in record for record in again)


def test_a_refitted_run_is_not_asked_about_what_it_learned_from(data: Path):
    train(data, "run", "--refit")
    answer = recsys("eval", "run", "--split", "valid")
    assert answer.code == 2
    assert "only --split test is fair" in answer.err


def test_global_time_is_said_with_its_moments(data: Path):
    settings = {**QUICK, "split.kind": "global_time", "split.target": "first"}
    said = train(data, "run", settings=settings)
    assert "test of global_time" in said.out
    found = json.loads(Path("run/metrics.json").read_text())["split"]
    assert (found["kind"], found["target"]) == ("global_time", "first")
    assert 0 < found["valid_from"] < found["test_from"] <= LENGTH - 1


def test_users_too_short_for_the_split_are_counted():
    write_log(Path("log.csv"))
    with open("log.csv", "a") as log:
        log.write("short,i1,1\nshort,i2,2\n")
    said = done("train", "--model", "popular", "--data", "log.csv", "--out", "run")
    assert "(1 users only train)" in said.out
    assert json.loads(Path("run/metrics.json").read_text())["split"]["users_train_only"] == 1


@pytest.mark.parametrize("command", ["data prepare", "train --model popular --data"])
def test_guessed_columns_are_printed_and_given_ones_are_not(command: str):
    write_log(Path("log.csv"), "customer_id,SKU,event_time")
    guess = "columns: user = 'customer_id', item = 'SKU', time = 'event_time' (guessed"
    words = [*command.split(), "log.csv", "--out"]
    assert guess in done(*words, "one").err
    given = ("--user-column", "customer_id", "--item-column", "SKU", "--time-column", "event_time")
    assert "columns:" not in done(*words, "two", *given).err


def test_prepare_takes_the_settings_of_its_options():
    write_log(Path("log.csv"))
    with open("log.csv", "a") as log:
        log.write("short,i1,1\nu0,i0,0\n")
    found = done(
        *("data", "prepare", "log.csv", "--out", "data", "--min-user-events", 2),
        *("--min-item-events", 2, "--duplicates", "keep", "--json"),
    ).json  # fmt: skip
    assert (found["users"], found["interactions"]) == (USERS, USERS * LENGTH + 1)
    settings = json.loads(Path("data/dataset.json").read_text())["settings"]
    assert settings["min_user_events"] == settings["min_item_events"] == 2
    assert settings["duplicates"] == "keep"


UNKNOWN = [
    ("train --model sasrek --data DATA", "unknown model 'sasrek'; did you mean 'sasrec'?"),
    (
        "train --model sasrec --data DATA --set model.dims=8",
        "unknown setting model.dims; did you mean 'dim'?",
    ),
    ("train --model sasrec --data DATA --set trainer.epoch=1", "did you mean 'epochs'?"),
    ("train --model sasrec --data DATA --set modle.dim=8", "unknown section 'modle'"),
    ("train --model sasrec --data DATA --set modle.dim=8", "did you mean 'model'?"),
    (
        "train --model sasrec --data DATA --set loss.name=softmx",
        "unknown loss 'softmx'; did you mean 'softmax'?",
    ),
    ("train --model sasrec --data DATA --set split.kind=globaltime", "did you mean 'global_time'?"),
    (
        "train --recipe sasrec_beauti --data DATA",
        "unknown recipe 'sasrec_beauti'; did you mean 'sasrec_beauty'?",
    ),
    ("train --model sasrec --data sampel", "nor the name of a source; did you mean 'sample'?"),
    ("data info movielens-100", "did you mean 'movielens-100k'?"),
    ("data prepare amazn:sports --out d", "did you mean 'amazon:sports'?"),
    ("data prepare DATA/../log.csv --out d --duplicates frist", "did you mean 'first'?"),
    (
        "data prepare DATA/../log.csv --out d --item-column itms",
        "has no column 'itms'; did you mean 'item'?",
    ),
    ("index RUN --type hnws", "unknown index type 'hnws'; did you mean 'hnsw'?"),
]


@pytest.mark.parametrize(("line", "message"), UNKNOWN)
def test_an_unknown_word_is_answered_with_the_nearest_known_one(
    data: Path, line: str, message: str
):
    line = line.replace("DATA", str(data)).replace("RUN", str(data.with_name("run")))
    answer = recsys(*line.split())
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert not Path("d").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "line",
    [
        "trian",
        "train --modle sasrec",
        "train --data DATA",
        "train --model sasrec",
        "train --model sasrec --data DATA --set model.dim",
        "train --model sasrec --data DATA --device tpu",
        "train --model sasrec --data DATA --seed x",
        "eval RUN --split train",
        "compare RUN",
        "recommend RUN",
        "recommend RUN --all-users",
        "recommend RUN --history i1 --all-users --out x.parquet",
        "data prepare DATA/../log.csv",
    ],
)
def test_wrong_usage_has_exit_code_2(data: Path, line: str):
    line = line.replace("DATA", str(data)).replace("RUN", str(data.with_name("run")))
    answer = recsys(*line.split())
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.strip()


def test_a_loss_that_is_not_a_number_has_exit_code_1_and_names_the_step(data: Path):
    answer = recsys(
        "train", "--model", "sasrec", "--data", data, "--out", "run",
        *sets({**QUICK, "trainer.lr": 1e38, "trainer.grad_clip": 0}),
    )  # fmt: skip
    assert answer.code == 1
    assert "the loss is not a number at step 2 (epoch 1, batch 2)" in answer.err
    assert not Path("run/metrics.json").exists()


def test_models_are_listed_with_settings_and_papers():
    found = {entry["name"]: entry for entry in done("models", "--json").json["models"]}
    assert found.keys() >= {"sasrec", "popular", "item_knn"}
    assert "Kang" in found["sasrec"]["paper"]
    settings = {entry["name"]: entry["default"] for entry in found["sasrec"]["settings"]}
    names = ("dim", "num_layers", "num_heads", "max_len", "dropout")
    assert settings.keys() >= {f"model.{name}" for name in names}
    said = done("models").out
    assert all(name in said for name in (*found, "model.dropout", "Kang"))


def test_losses_are_listed_with_settings_and_papers():
    found = {entry["name"]: entry for entry in done("losses", "--json").json["losses"]}
    assert found.keys() == {loss.name for loss in LOSSES}
    assert all(entry["paper"] for entry in found.values())
    settings = {entry["name"]: entry["default"] for entry in found["sampled_softmax"]["settings"]}
    assert settings.keys() >= {"loss.num_negatives", "loss.temperature"}
    said = done("losses").out
    assert all(name in said for name in (*found, "loss.temperature"))


def test_recipes_are_listed_with_what_they_set():
    found = {entry["name"]: entry for entry in done("recipes", "--json").json["recipes"]}
    assert found.keys() >= {"sasrec_sample", "sasrec_beauty"}
    assert found["sasrec_sample"]["settings"]["model"]["name"] == "sasrec"
    assert all(entry["title"] for entry in found.values())
    assert all(name in done("recipes").out for name in found)


def test_sources_are_listed_with_where_their_files_are(tmp_path: Path, monkeypatch):
    shelf = tmp_path / "shelf/ml-100k"
    shelf.mkdir(parents=True)
    (shelf / "u.data").write_text("1\t2\t5\t3\n")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "shelf"))
    found = {entry["name"]: entry for entry in done("data", "list", "--json").json["sources"]}
    movielens = {f"movielens-{size}" for size in ("100k", "1m", "20m", "latest-small")}
    amazon = {"amazon", "amazon:sports", "amazon:toys", "amazon2018:NAME", "amazon2023:NAME"}
    assert found.keys() >= {"sample", *movielens, *amazon}
    assert found["movielens-100k"]["found"] == str(shelf)
    assert found["movielens-1m"]["found"] is None
    said = done("data", "list").out
    assert "sample" in said
    assert "to download" in " ".join(said.split())


@pytest.mark.parametrize(
    "command",
    [
        "data",
        "data list",
        "data prepare",
        "data info",
        "train",
        "eval",
        "compare",
        "index",
        "recommend",
        "models",
        "losses",
        "recipes",
    ],
)
def test_every_command_has_help(command: str):
    assert "Usage" in done(*command.split(), "--help").out
