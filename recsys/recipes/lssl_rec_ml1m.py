"""LSSL for MovieLens-1M (6,040 users, 3,416 films).

Leave-one-out, seen masked, seed 0: test HR@10 0.3076, NDCG@10 0.1774 after 120 epochs, the
best of them the 114th. It was begun for 56 (0.2974 and 0.1730) and gone on with;
with --refit 0.3098 and 0.1794.
"""

from recsys.models.lssl_rec import LSSLRec
from recsys.settings import RunConfig
from recsys.training.losses import Softmax
from recsys.training.trainer import TrainerConfig


def recipe() -> RunConfig:
    """Full softmax; histories of up to 2,275 films train in windows of 200, cut elsewhere in every
    epoch, and the mean of the weights over the last 500 steps or so is kept."""
    return RunConfig(
        model_name="lssl_rec",
        model=LSSLRec.Config(dim=64, num_layers=2, max_len=200, dropout=0.2),
        loss=Softmax(),
        trainer=TrainerConfig(
            epochs=120,
            batch_size=128,
            long_histories="moving_windows",
            lr=1e-3,
            average=0.998,
            validate_every=2,
            patience=6,
        ),
    )
