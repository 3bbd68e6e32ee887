"""GRU4Rec for Amazon Beauty (S3-Rec's 5-core file: 22,363 users, 12,101 items).

Leave-one-out, seen masked, seed 0: test HR@10 0.0691, NDCG@10 0.0414 after 58 epochs; with --refit
0.0887 and 0.0531. Not converged.
"""

from recsys.models.gru4rec import GRU4Rec
from recsys.settings import RunConfig
from recsys.training.losses import Softmax
from recsys.training.trainer import TrainerConfig


def recipe() -> RunConfig:
    """Full softmax, wide vectors under strong dropout."""
    return RunConfig(
        model_name="gru4rec",
        model=GRU4Rec.Config(dim=128, num_layers=1, max_len=50, dropout=0.5, hidden_dropout=0.3),
        loss=Softmax(),
        trainer=TrainerConfig(epochs=60, batch_size=256, lr=1e-3, weight_decay=0.01, patience=5),
    )
