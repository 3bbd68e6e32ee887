"""The results page says what the committed results say, and recipes what they were measured at."""

import importlib
import sys
from pathlib import Path

import pytest

from recsys.recipes import recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
results_page = importlib.import_module("results_page")
RESULTS = results_page.read_results()


def test_the_results_page_is_what_its_script_writes():
    assert results_page.PAGE.read_text(encoding="utf-8") == results_page.page()


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_belongs_to_its_recipe_and_stands_in_its_docstring(name: str):
    found, run = RESULTS[name], recipe(name)
    assert (found["recipe"], found["model"]) == (name, run.model_name)
    sessions = found["split"]["kind"] == "sessions"
    said = " ".join((importlib.import_module(f"recsys.recipes.{name}").__doc__ or "").split())
    for metric in ("hr@20", "mrr@20") if sessions else ("hr@10", "ndcg@10"):
        for metrics in (results_page.before_refit(found), found["metrics"]):
            assert f"{metrics[metric]['value']:.4f}" in said
