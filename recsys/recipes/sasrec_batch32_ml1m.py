"""SASRec in four times as many steps, with a falling learning rate, for MovieLens-1M.

Not measured yet.
"""

from recsys.models.sasrec import SASRec
from recsys.settings import RunConfig
from recsys.training.losses import Softmax
from recsys.training.trainer import TrainerConfig


def recipe() -> RunConfig:
    """Full softmax; histories of up to 2,275 films train in windows of 200."""
    return RunConfig(
        model_name="sasrec",
        model=SASRec.Config(dim=128, num_layers=2, num_heads=2, max_len=200, dropout=0.3),
        loss=Softmax(),
        trainer=TrainerConfig(
            epochs=30,
            batch_size=32,
            long_histories="windows",
            lr=1e-3,
            schedule="cosine",
            warmup_steps=200,
            validate_every=2,
            patience=6,
        ),
    )
