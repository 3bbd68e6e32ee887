"""Write docs/results.md from the committed results of `quality.py`. A test keeps the two equal.

python benchmarks/results_page.py
"""

import json
from pathlib import Path
from typing import Any

from recsys.recipes import recipe_names

RESULTS = Path(__file__).with_name("results") / "quality"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
DATA = {
    "beauty": "Amazon Beauty, S3-Rec's 5-core file",
    "sports": "Amazon Sports and Outdoors, S3-Rec's 5-core file",
    "ml100k": "MovieLens-100K, no filter",
    "ml1m": "MovieLens-1M, SASRec's 5-core sequences",
    "yoochoose": "Yoochoose 1/64, SR-GNN's sessions, every prefix of a test session",
    "diginetica": "Diginetica, SR-GNN's sessions, every prefix of a test session",
    "scientific": "Amazon Scientific, items known by their texts",
}
"""By the end of a recipe's name."""
SESSIONS = ("yoochoose", "diginetica")
PUBLISHED = {
    "beauty": "Published on this file (eSASRec's README; the validation item's use is not said):"
    " SASRec with sampled softmax 0.0921 / 0.0531, eSASRec 0.0928 / 0.0523, HSTU 0.0788 / 0.0439;"
    " TIGER 0.0648 / 0.0384; S3-Rec 0.0647 / 0.0327, with BERT4Rec at 0.0347 / 0.0170 and GRU4Rec"
    " at 0.0283 / 0.0137.",
    "sports": "Published on this file (eSASRec's README): SASRec with sampled softmax 0.0569 /"
    " 0.0314, eSASRec 0.0560 / 0.0323, HSTU 0.0437 / 0.0243, TIGER 0.0400 / 0.0225.",
    "ml1m": "Published with full ranking, on versions of MovieLens-1M that order equal times"
    " differently: SASRec 0.3058 / 0.1779 (RecTools), 0.3181 / 0.1902 (LRURec's paper); GRU4Rec"
    " 0.2811 / 0.1648 (Dross); BERT4Rec 0.2921 / 0.1618 (RecTools); LRURec 0.3264 / 0.1930; HSTU"
    " 0.3097 / 0.1720 (paper).",
    "yoochoose": "Published GRU4Rec on this file, as SR-GNN's paper reports it: Recall@20 0.6064,"
    " MRR@20 0.2289. The authors' own, on the whole of Yoochoose: 0.6789 / 0.3024.",
    "diginetica": "Published GRU4Rec on this file, as SR-GNN's paper reports it: Recall@20 0.2945,"
    " MRR@20 0.0833. The authors' own, on their cut of Diginetica: 0.4995 / 0.1542.",
}
"""Figures of others, HR@10 / NDCG@10 unless named."""
HEAD = """# Results

Full ranking over the whole catalogue, ties against the model, best epoch by validation, one seed
(0). "train" is the model of the best epoch; "refit" is trained once more on train and valid
together for as many epochs. Brackets hold a 95 % bootstrap over users. Every row comes from the
file of its recipe in `benchmarks/results/quality` (the run's `metrics.json`, the course of
validation, the machine) and is made again by its command:

```
RECSYS_DATA=… python benchmarks/quality.py RECIPE
python benchmarks/results_page.py
```
"""


def read_results() -> dict[str, dict[str, Any]]:
    """Every committed result, by recipe."""
    files = sorted(RESULTS.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def before_refit(result: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the model that has trained on the training part alone."""
    metrics: dict[str, Any] = result["without_refit" if result["protocol"]["refit"] else "metrics"]
    return metrics


def page() -> str:
    """The whole of docs/results.md."""
    results = read_results()
    parts = [HEAD]
    for data, title in DATA.items():
        names = [name for name in recipe_names() if name.rpartition("_")[2] == data]
        rows = {name: results[name] for name in names if name in results}
        parts.append(f"## {title}\n")
        if rows:
            parts.append(_measured(data, rows))
        parts += _not_run([name for name in names if name not in results])
    return "\n".join(parts)


def _not_run(names: list[str]) -> list[str]:
    """Recipes that no number is known of yet."""
    commands = [f"- `python benchmarks/quality.py {name}`" for name in names]
    return ["Not run yet:\n", *commands, ""] if commands else []


def _measured(data: str, rows: dict[str, dict[str, Any]]) -> str:
    about = next(iter(rows.values()))
    one, other = ("hr@20", "mrr@20") if data in SESSIONS else ("hr@10", "ndcg@10")
    named = "Recall@20 / MRR@20" if data in SESSIONS else "HR@10 / NDCG@10"
    facts = about["data"]
    seen = "masked" if about["protocol"]["seen"] == "mask" else "kept"
    split = str(about["split"]["kind"]).replace("_", " ")
    lines = [
        f"Fingerprint {facts['fingerprint'][:12]}: {facts['users']:,} sequences,"
        f" {facts['items']:,} items, {facts['interactions']:,} interactions. Split: {split};"
        f" {about['targets']:,} targets; seen items {seen}.",
        "",
        f"| recipe | train: {named} | refit: {named} | epochs | s an epoch |",
        "|---|---|---|---|---|",
    ]
    ordered = sorted(rows.items(), key=lambda row: -row[1]["metrics"][other]["value"])
    for name, result in ordered:
        before = before_refit(result)
        refit = result["protocol"]["refit"]
        after = _pair(result["metrics"], one, other) if refit else "not run"
        epochs = f"{result['best_epoch']}{'' if result['converged'] else ', not converged'}"
        lines.append(
            f"| `{name}` | {_pair(before, one, other)} | {after} | {epochs} |"
            f" {result['seconds_an_epoch']} |"
        )
    for name, metrics in about["baselines"].items():
        lines.append(f"| {name} (baseline) | | {metrics[one]:.4f} / {metrics[other]:.4f} | | |")
    lines += ["", *([PUBLISHED[data], ""] if data in PUBLISHED else [])]
    lines += _curves(data, rows)
    return "\n".join(lines)


def _pair(metrics: dict[str, Any], one: str, other: str) -> str:
    first, second = metrics[one], metrics[other]
    return (
        f"{first['value']:.4f} ({first['ci95'][0]:.4f} – {first['ci95'][1]:.4f}) /"
        f" {second['value']:.4f} ({second['ci95'][0]:.4f} – {second['ci95'][1]:.4f})"
    )


def _curves(data: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    """The course of validation where training was ended before it had settled."""
    lines = []
    for name, result in rows.items():
        if not result["converged"]:
            curve = result["valid"]["by_epoch"]
            points = ", ".join(f"{epoch}: {value:.4f}" for epoch, value in curve.items())
            metric = result["valid"]["metric"]
            lines += [f"`{name}` has not converged; {metric} of validation by epoch: {points}.", ""]
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
