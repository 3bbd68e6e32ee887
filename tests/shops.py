"""A small shop whose items are known by their titles."""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from recsys.data.prepare import DataConfig
from recsys.run import prepare

KINDS = ["cream", "hose", "lamp", "soap"]
SMALL = {
    "model.dim": 16,
    "model.max_len": 6,
    "model.dropout": 0.0,
    "trainer.epochs": 12,
    # Early epochs rank the few known items as well as the last; new ones need what came later.
    "trainer.validate_every": 12,
    "trainer.batch_size": 16,
    "trainer.lr": 0.01,
}


def item(kind: str, number: int) -> str:
    return f"{kind}-{number}"


def shop_folder(folder: Path, kinds: list[str] = KINDS) -> Path:
    """People stay with one kind of thing; titles name the kind, item n costs n + 0.5."""
    rows = [
        (f"{kind}{user}", item(kind, (user + step) % 6))
        for kind in kinds
        for user in range(12)
        for step in range(5)
    ]
    users, items = zip(*rows, strict=True)
    titles = folder / "items.csv"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{item(kind, n)},shiny {kind} number{n},{n}.5" for kind in kinds for n in range(6)]
    titles.write_text("\n".join(["item,title,price", *lines]) + "\n")
    prepare(
        pa.table({"user": users, "item": items}),
        folder / "data",
        DataConfig(items=str(titles)),
    )
    return folder / "data"


NEW = pd.DataFrame({"item": ["cream-new", "hose-new"], "title": ["shiny cream", "shiny hose"]})
