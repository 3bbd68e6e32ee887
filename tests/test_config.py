"""Settings: typed, merged in order, refused where they are wrong, and read back as they were."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from recsys.config import (
    describe_fields,
    from_dict,
    merge,
    parse_settings,
    read_settings,
    to_dict,
)
from recsys.errors import InputError, nearest
from recsys.models.base import model_class, model_names
from recsys.recipes import recipe, recipe_names
from recsys.settings import RunConfig, configure, metric_cutoff, saved_config
from recsys.training.losses import (
    BCE,
    GBCE,
    LOSSES,
    Cloze,
    MLMContrastive,
    SampledSoftmax,
    Softmax,
)


@dataclass(frozen=True)
class Example:
    """One field of every type that settings have."""

    dim: int = 8
    rate: float = 0.5
    fast: bool = False
    kind: Literal["red", "green"] = "red"
    width: int | None = None
    days: float | None = 1.5
    word: str = "a"


def built(name: str, value: Any) -> Any:
    return getattr(from_dict(Example, {name: value}, "model"), name)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("dim", "64", 64),
        ("dim", "1e3", 1000),
        ("dim", 12.0, 12),
        ("rate", "1e-3", 0.001),
        ("rate", 1, 1.0),
        ("fast", "true", True),
        ("fast", "False", False),
        ("fast", True, True),
        ("kind", "green", "green"),
        ("width", "none", None),
        ("width", None, None),
        ("width", "7", 7),
        ("days", "Null", None),
        ("days", "2", 2.0),
        ("word", "none", "none"),
    ],
)
def test_a_setting_takes_the_type_of_its_field(name, text, value):
    found = built(name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dim", "6.5", "model.dim must be a whole number, got '6.5'"),
        ("dim", "many", "a whole number"),
        ("dim", "1e300", "a whole number"),
        ("dim", 2**53 + 1, "a whole number"),
        ("dim", True, "a whole number"),
        ("dim", "", "a whole number"),
        ("dim", [8], "a whole number"),
        pytest.param("dim", 10**400, "a whole number", id="huge"),
        ("dim", None, "a whole number, got None"),
        ("rate", "nan", "model.rate must be a number"),
        ("rate", math.inf, "a number"),
        ("rate", "none", "a number"),
        ("fast", "yes", "model.fast must be true or false, got 'yes'"),
        ("fast", 1, "true or false"),
        ("kind", "gren", "one of red, green, got 'gren'; did you mean 'green'"),
        ("kind", ["red"], "one of red, green"),
        ("width", "wide", "a whole number"),
        ("word", 5, "model.word must be text, got 5"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name, value, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        built(name, value)


def test_an_unknown_setting_suggests_the_nearest_and_lists_the_others():
    with pytest.raises(InputError, match=r"unknown setting model\.dmi; did you mean 'dim'\?"):
        built("dmi", 3)
    with pytest.raises(InputError, match=r"model\.zzz \(settings: model\.dim, model\.rate"):
        built("zzz", 3)
    assert nearest("zzz", ["dim"]) == ""


def test_settings_of_the_command_line_become_sections():
    found = parse_settings(["model.dim=64", "loss.name = bce", "model.x==y=z", "a.b.c="])
    assert found == {
        "model": {"dim": "64", "x": "=y=z"},
        "loss": {"name": "bce"},
        "a": {"b.c": ""},
    }


@pytest.mark.parametrize("text", ["model.dim", "dim=4", ".dim=4", "model.=4", "=4", ""])
def test_a_setting_that_is_no_setting_is_refused(text):
    with pytest.raises(InputError, match=r"SECTION\.NAME=VALUE"):
        parse_settings([text])


def test_files_hold_the_same_sections_in_toml_and_json(tmp_path: Path):
    toml, plain = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text('[model]\ndim = 32\n[loss]\nname = "gbce"\nt = 0.5\n')
    tree = {"model": {"dim": 32}, "loss": {"name": "gbce", "t": 0.5}}
    plain.write_text(json.dumps(tree))
    assert read_settings(toml) == read_settings(plain) == tree


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"[model\n", "line 1"),
        ("a.json", b'{"model": {,}}', "line 1 column 12"),
        ("a.json", b"[1, 2]", "must hold sections"),
        ("a.toml", b"dim = 64\n", "must hold sections"),
        ("a.toml", b"\xff\xfe", "cannot be read"),
        ("a.json", b"", "cannot be read"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path: Path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} .*{message}"):
        read_settings(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"b\.toml does not exist"):
        read_settings(tmp_path / "b.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_settings(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"b\.toml"):
        read_settings(tmp_path / "file" / "b.toml")


def test_later_settings_win_and_arguments_are_left_alone():
    first, second = {"model": {"dim": 1, "heads": 2}}, {"model": {"dim": 3}, "loss": {"t": 1}}
    assert merge(first, second) == {"model": {"dim": 3, "heads": 2}, "loss": {"t": 1}}
    assert first == {"model": {"dim": 1, "heads": 2}}


def test_fields_are_described_by_name_type_and_default():
    described = {entry["name"]: entry for entry in describe_fields(Example, "model")}
    assert described["model.width"]["type"] == "a whole number or none"
    assert described["model.kind"] == {
        "name": "model.kind",
        "type": "one of red, green",
        "default": "red",
    }


def test_configure_lays_settings_over_the_defaults():
    found = configure("sasrec", {"model": {"dim": "32"}, "trainer": {"lr": "0.1"}}, seed=4)
    assert found.model == replace(model_class("sasrec").Config(), dim=32)
    assert (found.trainer.lr, found.trainer.epochs) == (0.1, RunConfig("", None).trainer.epochs)
    assert (found.loss, found.seed, found.refit) == (Softmax(), 4, False)


def test_configure_lays_settings_over_a_recipe():
    base = replace(recipe("sasrec_beauty"), seed=7, refit=True)
    found = configure("sasrec", {"model": {"dim": 32}}, base=base)
    assert found == replace(base, model=replace(base.model, dim=32))
    assert configure("sasrec", {}, base=base, seed=0, refit=False).seed == 0
    with pytest.raises(InputError, match="recipe is for model 'sasrec', not for 'popular'"):
        configure("popular", {}, base=base)


def test_another_loss_starts_from_its_own_defaults():
    base = replace(recipe("sasrec_beauty"), loss=SampledSoftmax(num_negatives=9, temperature=0.1))
    assert configure("sasrec", {"loss": {"name": "bce"}}, base=base).loss == BCE()
    same = configure("sasrec", {"loss": {"name": "sampled_softmax", "log_q": "false"}}, base=base)
    assert same.loss == SampledSoftmax(num_negatives=9, temperature=0.1, log_q=False)
    kept = configure("sasrec", {"loss": {"temperature": "0.2"}}, base=base)
    assert kept.loss == SampledSoftmax(num_negatives=9, temperature=0.2)
    assert configure("sasrec", {"loss": {"name": "gbce", "t": "0.5"}}).loss == GBCE(t=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modle": {"dim": 3}}, r"unknown section 'modle'.*\(sections: model, loss"),
        ({"model": {"dims": 3}}, "did you mean 'dim'"),
        ({"loss": {"t": 0.5}}, r"unknown setting loss\.t"),
        ({"loss": {"name": "bpe"}}, "unknown loss 'bpe'; did you mean 'bce'"),
        ({"loss": {"name": 5}}, r"loss\.name must be text, got 5"),
        ({"loss": {"name": ["bce"]}}, r"loss\.name must be text"),
        ({"model": {"name": "popular"}}, r"model\.name contradicts .* 'sasrec'"),
        ({"model": {"num_heads": 3}}, "multiple of model.num_heads, got 64 and 3"),
        ({"trainer": {"metric": "recall@10"}}, "hr@K, ndcg@K or mrr@K, got 'recall@10'"),
        ({"trainer": {"metric": "ndcg@0"}}, "got 'ndcg@0'"),
        ({"trainer": {"epochs": "-1"}}, r"trainer\.epochs must not be negative"),
        ({"split": {"kind": "leave-one-out"}}, "did you mean 'leave_one_out'"),
        ({"data": {"min_user_events": "0"}}, r"data\.min_user_events must be at least 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        configure("sasrec", settings)


def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'sasrec'"):
        configure("sasrek", {})


def test_the_cut_off_of_a_metric():
    assert metric_cutoff("ndcg@10") == 10


def through_json(config: RunConfig) -> RunConfig:
    return saved_config(json.loads(json.dumps(config.as_dict())))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_saved_config_is_read_back_for_every_loss(loss):
    model = {Cloze: "bert4rec", MLMContrastive: "recformer"}.get(loss, "sasrec")
    config = configure(model, {"loss": {"name": loss.name}}, seed=3, refit=True)
    assert through_json(config) == config
    assert isinstance(through_json(config).loss, loss)


@pytest.mark.parametrize("model", model_names())
def test_a_saved_config_is_read_back_for_every_model(model):
    config = configure(model, {"split": {"kind": "global_time", "target": "first"}})
    assert through_json(config) == config


@pytest.mark.parametrize("name", recipe_names())
def test_a_saved_config_is_read_back_for_every_recipe(name):
    assert through_json(recipe(name)) == recipe(name)


@pytest.mark.parametrize("missing", ["model", "loss", "trainer", "split", "data", "seed", "refit"])
def test_a_saved_config_without_a_part_is_damaged(missing):
    saved = configure("popular", {}).as_dict()
    del saved[missing]
    with pytest.raises(InputError, match=rf"config\.json is damaged.*{missing}"):
        saved_config(saved)


@pytest.mark.parametrize("name", [5, None, ["sasrec"]])
def test_a_saved_model_name_that_is_no_text_is_refused(name):
    saved = configure("popular", {}).as_dict()
    saved["model"]["name"] = name
    with pytest.raises(InputError, match="model"):
        saved_config(saved)


def test_plain_values_make_the_same_settings_again():
    example = Example(dim=3, width=4, kind="green")
    assert from_dict(Example, to_dict(example), "model") == example
