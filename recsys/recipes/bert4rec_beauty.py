"""BERT4Rec for Amazon Beauty (S3-Rec's 5-core file: 22,363 users, 12,101 items).

Leave-one-out, seen masked, seed 0: test HR@10 0.0543, NDCG@10 0.0303 after 54 epochs; with --refit
0.0666 and 0.0383.
"""

from recsys.models.bert4rec import BERT4Rec
from recsys.settings import RunConfig
from recsys.training.losses import Softmax
from recsys.training.trainer import TrainerConfig


def recipe() -> RunConfig:
    """The Cloze task, full softmax."""
    return RunConfig(
        model_name="bert4rec",
        model=BERT4Rec.Config(dim=128, num_layers=2, max_len=50, dropout=0.5, num_heads=2),
        loss=Softmax(),
        trainer=TrainerConfig(
            epochs=150, batch_size=256, lr=1e-3, weight_decay=0.01, validate_every=3, patience=6
        ),
    )
