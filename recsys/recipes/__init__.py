"""Recipes: a run is a function that returns a RunConfig; its measured numbers stand in its
docstring.

Found by file name: `recsys train --recipe NAME` calls recsys.recipes.NAME.recipe(). A recipe that
carries a number is not changed any more; a change is a new recipe.
"""

import importlib
import pkgutil
from typing import Any

from recsys.errors import InputError, nearest
from recsys.settings import RunConfig


def recipe_names() -> list[str]:
    """The names of all recipes, one for each file in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def recipe(name: str) -> RunConfig:
    """The settings of the recipe called `name`."""
    if name not in recipe_names():
        known = ", ".join(recipe_names())
        raise InputError(
            f"unknown recipe {name!r}{nearest(name, recipe_names())} (recipes: {known})"
        )
    return importlib.import_module(f"recsys.recipes.{name}").recipe()


def recipe_list() -> list[dict[str, Any]]:
    """Name, description and settings of every recipe."""
    return [
        {
            "name": name,
            "title": " ".join(
                (importlib.import_module(f"recsys.recipes.{name}").__doc__ or "").split()
            ),
            "settings": recipe(name).as_dict(),
        }
        for name in recipe_names()
    ]
