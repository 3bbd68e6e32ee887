"""SASRec for the bundled `sample` source: small, and done in about a minute on two cores."""

from recsys.models.sasrec import SASRec
from recsys.settings import RunConfig
from recsys.training.trainer import TrainerConfig


def recipe() -> RunConfig:
    """Full softmax; enough width for a thousand items."""
    return RunConfig(
        model_name="sasrec",
        model=SASRec.Config(dim=64, num_layers=2, num_heads=2, max_len=50, dropout=0.3),
        trainer=TrainerConfig(epochs=60, batch_size=128, lr=1e-3, patience=6),
    )
