"""Settings: what decides what a run becomes, and how `--set`, files and recipes lay over it."""

import re
from dataclasses import dataclass
from typing import Any

from recsys.config import from_dict, merge, to_dict
from recsys.data.prepare import DataConfig
from recsys.data.split import SplitConfig
from recsys.errors import InputError, nearest
from recsys.models.base import asks_at_every_position, model_class
from recsys.training.losses import AnyLoss, Cloze, MLMContrastive, Softmax, loss_class
from recsys.training.trainer import TrainerConfig


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run becomes, besides the data itself."""

    model_name: str
    model: Any
    """The model's own Config."""
    loss: AnyLoss = Softmax()
    trainer: TrainerConfig = TrainerConfig()
    split: SplitConfig = SplitConfig()
    data: DataConfig = DataConfig()
    seed: int = 0
    refit: bool = False
    """After early stopping, train once more on train and valid together for the epochs it found."""

    def as_dict(self) -> dict[str, Any]:
        """The sections of config.json."""
        return {
            "model": {"name": self.model_name, **to_dict(self.model)},
            "loss": {"name": self.loss.name, **to_dict(self.loss)},
            "trainer": to_dict(self.trainer),
            "split": to_dict(self.split),
            "data": to_dict(self.data),
            "seed": self.seed,
            "refit": self.refit,
        }


def configure(
    model: str,
    settings: dict[str, dict[str, Any]],
    *,
    base: RunConfig | None = None,
    seed: int | None = None,
    refit: bool | None = None,
) -> RunConfig:
    """Lay `settings` (sections of names and values) over a recipe or over the defaults."""
    sections = ("model", "loss", "trainer", "split", "data")
    for section in settings:
        if section not in sections:
            raise InputError(
                f"unknown section {section!r} of settings{nearest(section, sections)} (sections:"
                f" {', '.join(sections)})"
            )
    if base is not None and base.model_name != model:
        raise InputError(f"the recipe is for model {base.model_name!r}, not for {model!r}")
    base = base or RunConfig(model, model_class(model).Config())
    tree = base.as_dict()
    named = {section: settings.get(section, {}) for section in sections}
    loss_name = named["loss"].get("name", base.loss.name)
    if not isinstance(loss_name, str):
        raise InputError(f"loss.name must be text, got {loss_name!r}")
    if loss_name != base.loss.name:
        tree["loss"] = {}  # the settings of one loss say nothing about another
    merged = merge({section: tree[section] for section in sections}, named)
    for section, name in (("model", model), ("loss", loss_name)):
        if merged[section].pop("name", name) != name:
            raise InputError(
                f"{section}.name contradicts the {section} that was asked for, {name!r}"
            )
    config = RunConfig(
        model_name=model,
        model=from_dict(model_class(model).Config, merged["model"], "model"),
        loss=from_dict(loss_class(loss_name), merged["loss"], "loss"),
        trainer=from_dict(TrainerConfig, merged["trainer"], "trainer"),
        split=from_dict(SplitConfig, merged["split"], "split"),
        data=from_dict(DataConfig, merged["data"], "data"),
        seed=base.seed if seed is None else seed,
        refit=base.refit if refit is None else refit,
    )
    metric_cutoff(config.trainer.metric)
    if loss_name == Cloze.name and asks_at_every_position(model_class(model)):
        raise InputError(
            f"loss.name=cloze is for models that hide items (bert4rec); {model} predicts the item"
            " behind each position: use loss.name=softmax"
        )
    if config.refit and config.trainer.epochs == 0:
        raise InputError("--refit trains for the epochs that training found; trainer.epochs is 0")
    if loss_name == MLMContrastive.name and not model_class(model).reads_tokens:
        raise InputError(
            f"loss.name=mlm_contrastive is for models that read texts (recformer), not for {model}"
        )
    if not 0 <= config.seed < 2**63:
        raise InputError(f"--seed takes a whole number from 0 to 2^63 - 1, got {config.seed}")
    return config


def differences(before: RunConfig, now: RunConfig) -> list[str]:
    """What was said otherwise before, setting by setting; an auto equals what it stands for."""
    old, new = (
        {**config.as_dict(), "split": to_dict(config.split.settled())} for config in (before, now)
    )
    found = []
    for section, value in new.items():
        if not isinstance(value, dict):
            if old[section] != value:
                found.append(f"{section} was {old[section]}, is {value}")
            continue
        found += [
            f"{section}.{name} was {old[section].get(name)}, is {setting}"
            for name, setting in value.items()
            if old[section].get(name) != setting
        ]
    return found


def metric_cutoff(metric: str) -> int:
    """The k of `ndcg@10`; InputError for a metric that is not one."""
    found = re.fullmatch(r"(hr|ndcg|mrr)@([1-9]\d*)", metric)
    if not found:
        raise InputError(f"trainer.metric must be hr@K, ndcg@K or mrr@K, got {metric!r}")
    return int(found[2])


def saved_config(saved: dict[str, Any]) -> RunConfig:
    """The RunConfig that a config.json was written from."""
    sections = ("model", "loss", "trainer", "split", "data")
    try:
        tree = {section: dict(saved[section]) for section in sections}
        name, seed, refit = str(tree["model"]["name"]), int(saved["seed"]), bool(saved["refit"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"config.json is damaged: {error!r} is missing or wrong") from None
    return configure(name, tree, seed=seed, refit=refit)
