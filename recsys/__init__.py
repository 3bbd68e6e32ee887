"""recsys: sequential recommendation, from a raw interaction log to a retriever inside a service.

    import recsys
    run = recsys.train(frame, model="sasrec", out="runs/mine")
    recsys.Retriever.load(run).recommend(["B0001"], k=10)

Importing recsys imports nothing heavy; each name below is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.data.sequences import SequenceDataset
    from recsys.retrieval.retriever import Recommendations, Retriever
    from recsys.run import evaluate, prepare, train

__version__ = "0.1.0"
__all__ = ["Recommendations", "Retriever", "SequenceDataset", "evaluate", "prepare", "train"]

_HOMES = {
    "Recommendations": "recsys.retrieval.retriever",
    "Retriever": "recsys.retrieval.retriever",
    "SequenceDataset": "recsys.data.sequences",
    "evaluate": "recsys.run",
    "prepare": "recsys.run",
    "train": "recsys.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
