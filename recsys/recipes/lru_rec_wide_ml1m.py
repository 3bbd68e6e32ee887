"""LRURec of width 128 with a falling learning rate, for MovieLens-1M (6,040 users, 3,416 films).

Not measured yet.
"""

from recsys.models.lru_rec import LRURec
from recsys.settings import RunConfig
from recsys.training.losses import Softmax
from recsys.training.trainer import TrainerConfig


def recipe() -> RunConfig:
    """Full softmax; histories of up to 2,275 films train in windows of 200."""
    return RunConfig(
        model_name="lru_rec",
        model=LRURec.Config(dim=128, num_layers=2, max_len=200, dropout=0.3),
        loss=Softmax(),
        trainer=TrainerConfig(
            epochs=40,
            batch_size=128,
            long_histories="windows",
            lr=1e-3,
            schedule="cosine",
            warmup_steps=100,
            validate_every=2,
            patience=6,
        ),
    )
