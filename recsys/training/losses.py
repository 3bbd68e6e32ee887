"""Losses on Pairs. Each knows no model: loss(pairs, item_vectors_VD, negatives) -> [] scalar.

A loss is a frozen dataclass: its fields are its settings (loss.* on the command line), calling it
computes it. The value is the weighted mean over the pairs, in float32.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.config import describe_fields
from recsys.data.negatives import SHARED_NEGATIVES, NegativeKind, Negatives
from recsys.errors import InputError, nearest
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.models.base import Pairs


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of the softmax over the whole catalogue."""

    name: ClassVar[str] = "softmax"
    paper: ClassVar[str] = "Klenitskiy & Vasilev, Turning Dross Into Gold Loss, RecSys 2023"
    temperature: float = 1.0
    """Scores are divided by it before the softmax; above 0."""

    def __post_init__(self) -> None:
        _check_positive("loss.temperature", self.temperature)

    def __call__(
        self, pairs: Pairs, item_vectors: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """[] mean of -log softmax(query . items / temperature)[target]."""
        weight_N = pairs.weight_N / pairs.weight_N.sum()
        device = pairs.query_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        # Row 0 of the table is padding: dropped, so that no probability goes to it.
        loss = linear_cross_entropy(
            pairs.query_ND.float(),
            item_vectors[1:],
            pairs.target_N - 1,
            row_weight=weight_N,
            reduction="sum",
            temperature=self.temperature,
            compute_dtype=dtype,
        )
        assert isinstance(loss, Tensor)
        return loss


@dataclass(frozen=True)
class Cloze(Softmax):
    """Cross-entropy over the whole catalogue at the hidden places of a history.

    The model hides the items, and its pairs are the hidden places alone: on them this is Softmax.
    """

    name: ClassVar[str] = "cloze"
    paper: ClassVar[str] = "Sun et al., BERT4Rec, CIKM 2019, equation 8"


@dataclass(frozen=True)
class SampledSoftmax:
    """Cross-entropy of the softmax over the target and sampled negatives."""

    name: ClassVar[str] = "sampled_softmax"
    paper: ClassVar[str] = "Yi et al., Sampling-Bias-Corrected Neural Modeling, RecSys 2019"
    num_negatives: int = 256
    """Negatives drawn each step (or for each pair); not used by in_batch."""
    negatives: NegativeKind = "uniform"
    """Where negatives come from: uniform, popularity, in_batch (the other pairs' targets), or
    in_batch_and_popularity (those, and num_negatives drawn)."""
    alpha: float = 1.0
    """Power of the counts in popularity, in [0, 1]: 1 is popularity, 0 is uniform."""
    per_pair: bool = False
    """Draw separate negatives for each pair instead of one set for the batch."""
    log_q: bool = True
    """Subtract the log of the sampling rate from each logit, to estimate the full softmax."""
    temperature: float = 1.0
    """Scores are divided by it before the softmax; above 0."""

    def __post_init__(self) -> None:
        _check_positive("loss.temperature", self.temperature)
        _check_negatives(self.num_negatives, self.negatives, self.alpha, self.per_pair)

    def __call__(
        self, pairs: Pairs, item_vectors: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """[] mean of -log softmax over {target} and the negatives that are not the target."""
        if negatives is None:
            raise ValueError("sampled_softmax needs negatives")
        target_logit_N, logits_NS = _logits(pairs, item_vectors, negatives)
        target_logit_N, logits_NS = target_logit_N / self.temperature, logits_NS / self.temperature
        if self.log_q:
            # The target is in the sum by right, with a count of one; a negative stands for
            # 1 / (S q) items of its kind.
            logits_NS = logits_NS - negatives.log_q
        # A draw of the target itself is no negative.
        logits_NS = logits_NS.masked_fill(_same(pairs.target_N, negatives.items), -math.inf)
        lse_N = torch.logsumexp(torch.cat([target_logit_N[:, None], logits_NS], dim=1), dim=1)
        return _weighted_mean(lse_N - target_logit_N, pairs.weight_N)


@dataclass(frozen=True)
class BCE:
    """Binary cross-entropy of the target against sampled negatives."""

    name: ClassVar[str] = "bce"
    paper: ClassVar[str] = "Kang & McAuley, Self-Attentive Sequential Recommendation, ICDM 2018"
    num_negatives: int = 1
    """Negatives drawn for each pair."""
    negatives: NegativeKind = "uniform"
    """Where negatives come from: uniform or popularity."""
    alpha: float = 1.0
    """Power of the counts in popularity, in [0, 1]: 1 is popularity, 0 is uniform."""
    per_pair: bool = True
    """Draw separate negatives for each pair instead of one set for the batch."""

    def __post_init__(self) -> None:
        _check_drawn(self.name, self.negatives)
        _check_negatives(self.num_negatives, self.negatives, self.alpha, self.per_pair)

    def __call__(
        self, pairs: Pairs, item_vectors: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """[] mean of -log sigmoid(target) - sum over negatives of log(1 - sigmoid(negative))."""
        return _binary(pairs, item_vectors, negatives, beta=1.0)


@dataclass(frozen=True)
class GBCE:
    """BCE with the target's probability raised to beta, against overconfidence from sampling."""

    name: ClassVar[str] = "gbce"
    paper: ClassVar[str] = "Petrov & Macdonald, gSASRec, RecSys 2023, equations 11 and 12"
    num_negatives: int = 256
    """Negatives drawn for each pair."""
    negatives: NegativeKind = "uniform"
    """Where negatives come from: uniform or popularity."""
    alpha: float = 1.0
    """Power of the counts in popularity, in [0, 1]: 1 is popularity, 0 is uniform."""
    per_pair: bool = True
    """Draw separate negatives for each pair instead of one set for the batch."""
    t: float = 0.75
    """Calibration in [0, 1]: 0 is plain BCE, 1 is fully calibrated."""

    def __post_init__(self) -> None:
        _check_drawn(self.name, self.negatives)
        _check_negatives(self.num_negatives, self.negatives, self.alpha, self.per_pair)
        if not 0 <= self.t <= 1:
            raise InputError(f"loss.t must lie in [0, 1], got {self.t}")

    def __call__(
        self, pairs: Pairs, item_vectors: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """[] as BCE with beta = alpha (t (1 - 1/alpha) + 1/alpha), alpha = S / (V - 1)."""
        alpha = min(1.0, self.num_negatives / max(1, len(item_vectors) - 2))
        beta = alpha * (self.t * (1 - 1 / alpha) + 1 / alpha)
        return _binary(pairs, item_vectors, negatives, beta)


@dataclass(frozen=True)
class _AgainstTheHighest:
    """Settings of the losses of Hidasi & Karatzoglou, in which high negatives count most."""

    num_negatives: int = 256
    """Negatives drawn each step (or for each pair); not used by in_batch."""
    negatives: NegativeKind = "popularity"
    """Where negatives come from: uniform, popularity, in_batch (the other pairs' targets), or
    in_batch_and_popularity (those, and num_negatives drawn)."""
    alpha: float = 1.0
    """Power of the counts in popularity, in [0, 1]: 1 is popularity, 0 is uniform."""
    per_pair: bool = False
    """Draw separate negatives for each pair instead of one set for the batch."""

    def __post_init__(self) -> None:
        _check_negatives(self.num_negatives, self.negatives, self.alpha, self.per_pair)


@dataclass(frozen=True)
class BPRMax(_AgainstTheHighest):
    """The target against the highest of its negatives, whose scores are kept small."""

    name: ClassVar[str] = "bpr_max"
    paper: ClassVar[str] = "Hidasi & Karatzoglou, RNNs with Top-k Gains, CIKM 2018, BPR-max"
    reg: float = 1.0
    """Weight of the squared scores of the negatives, at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reg >= 0:
            raise InputError(f"loss.reg must be at least 0, got {self.reg}")

    def __call__(
        self, pairs: Pairs, item_vectors: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """[] mean of -log sum_j s_j sigmoid(target - negative_j) + reg sum_j s_j negative_j^2.

        s is the softmax over the pair's negatives.
        """
        target_logit_N, logits_NS, log_s_NS, none_N = _against_the_highest(
            self.name, pairs, item_vectors, negatives
        )
        above_NS = F.logsigmoid(target_logit_N[:, None] - logits_NS)
        loss_N = self.reg * (log_s_NS.exp() * logits_NS.square()).sum(dim=1)
        loss_N = loss_N - torch.logsumexp(log_s_NS + above_NS, dim=1)
        return _weighted_mean(loss_N.masked_fill(none_N, 0.0), pairs.weight_N)


@dataclass(frozen=True)
class TOP1Max(_AgainstTheHighest):
    """The target against the highest of its negatives, in a loss between 1/2 and 2."""

    name: ClassVar[str] = "top1_max"
    paper: ClassVar[str] = "Hidasi & Karatzoglou, RNNs with Top-k Gains, CIKM 2018, TOP1-max"

    def __call__(
        self, pairs: Pairs, item_vectors: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """[] mean of sum_j s_j (sigmoid(negative_j - target) + sigmoid(negative_j^2)).

        s is the softmax over the pair's negatives.
        """
        target_logit_N, logits_NS, log_s_NS, none_N = _against_the_highest(
            self.name, pairs, item_vectors, negatives
        )
        cost_NS = torch.sigmoid(logits_NS - target_logit_N[:, None])
        cost_NS = cost_NS + torch.sigmoid(logits_NS.square())
        loss_N = (log_s_NS.exp() * cost_NS).sum(dim=1)
        return _weighted_mean(loss_N.masked_fill(none_N, 0.0), pairs.weight_N)


@dataclass(frozen=True)
class MLMContrastive:
    """Recformer's pretraining: each history is to find the text of its next item among those of the
    batch, and hidden words are to be found again (Li et al. 2023, section 2.3).

    For models that read texts; `objectives.TextPretraining` computes it.
    """

    name: ClassVar[str] = "mlm_contrastive"
    paper: ClassVar[str] = "Li et al., Text Is All You Need, KDD 2023"
    mlm_weight: float = 0.1
    """What the loss of hidden words is multiplied by, 0 for none."""
    mask_rate: float = 0.15
    """Share of words that are to be found again, in (0, 1): 8 of 10 are hidden, 1 is another word,
    1 stays (Devlin et al. 2019)."""

    def __post_init__(self) -> None:
        if not self.mlm_weight >= 0:
            raise InputError(f"loss.mlm_weight must not be negative, got {self.mlm_weight}")
        if not 0 < self.mask_rate < 1:
            raise InputError(f"loss.mask_rate must lie in (0, 1), got {self.mask_rate}")


Loss = Softmax | Cloze | SampledSoftmax | BCE | GBCE | BPRMax | TOP1Max
"""What compares the pairs of a model with item vectors."""
AnyLoss = Loss | MLMContrastive
PAIR_LOSSES: tuple[type[Loss], ...] = (Softmax, SampledSoftmax, BCE, GBCE, BPRMax, TOP1Max, Cloze)
LOSSES: tuple[type[AnyLoss], ...] = (*PAIR_LOSSES, MLMContrastive)


def loss_class(name: str) -> type[AnyLoss]:
    """The loss called `name`, as in `--set loss.name=NAME`."""
    known = {loss.name: loss for loss in LOSSES}
    if name not in known:
        names = ", ".join(known)
        raise InputError(f"unknown loss {name!r}{nearest(name, known)} (losses: {names})")
    return known[name]


def loss_list() -> list[dict[str, Any]]:
    """Name, first line of the docstring, paper and settings of every loss."""
    return [
        {
            "name": loss.name,
            "title": " ".join((loss.__doc__ or "").split()),
            "paper": loss.paper,
            "settings": describe_fields(loss, "loss"),
        }
        for loss in LOSSES
    ]


def _binary(pairs: Pairs, item_vectors: Tensor, negatives: Negatives | None, beta: float) -> Tensor:
    if negatives is None:
        raise ValueError("a binary loss needs negatives")
    target_logit_N, logits_NS = _logits(pairs, item_vectors, negatives)
    same_NS = _same(pairs.target_N, negatives.items)
    negative_NS = F.softplus(logits_NS).masked_fill(same_NS, 0.0)
    loss_N = beta * F.softplus(-target_logit_N) + negative_NS.sum(dim=1)
    return _weighted_mean(loss_N, pairs.weight_N)


def _against_the_highest(
    loss: str, pairs: Pairs, item_vectors: Tensor, negatives: Negatives | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(scores of the targets [N], of the negatives [N, S]; log softmax over a pair's negatives
    [N, S]; bool [N], True for a pair without any, since all that were drawn are its target)."""
    if negatives is None:
        raise ValueError(f"{loss} needs negatives")
    target_logit_N, logits_NS = _logits(pairs, item_vectors, negatives)
    same_NS = _same(pairs.target_N, negatives.items)
    # The lowest number instead of minus infinity: a pair without negatives gets no NaN.
    lowest = torch.finfo(logits_NS.dtype).min
    log_s_NS = torch.log_softmax(logits_NS.masked_fill(same_NS, lowest), dim=1)
    return target_logit_N, logits_NS, log_s_NS, same_NS.all(dim=1)


def _logits(pairs: Pairs, item_vectors: Tensor, negatives: Negatives) -> tuple[Tensor, Tensor]:
    """(scores of the targets [N], scores of the negatives [N, S]), float32: these are few."""
    with torch.autocast(pairs.query_ND.device.type, enabled=False):
        query_ND, item_vectors = pairs.query_ND.float(), item_vectors.float()
        target_logit_N = (query_ND * F.embedding(pairs.target_N, item_vectors)).sum(dim=1)
        negative_vectors = F.embedding(negatives.items, item_vectors)
        if negatives.items.dim() == 1:
            return target_logit_N, query_ND @ negative_vectors.T
        return target_logit_N, torch.einsum("nd,nsd->ns", query_ND, negative_vectors)


def _same(target_N: Tensor, negative_items: Tensor) -> Tensor:
    """[N, S] bool, True where a negative is the pair's own target."""
    return target_N[:, None] == negative_items


def _weighted_mean(loss_N: Tensor, weight_N: Tensor) -> Tensor:
    return (loss_N * weight_N).sum() / weight_N.sum()


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise InputError(f"{name} must be above 0, got {value}")


def _check_negatives(
    num_negatives: int, negatives: NegativeKind, alpha: float, per_pair: bool
) -> None:
    _check_positive("loss.num_negatives", num_negatives)
    if not 0 <= alpha <= 1:
        raise InputError(f"loss.alpha must lie in [0, 1], got {alpha}")
    if alpha != 1 and negatives in ("uniform", "in_batch"):
        raise InputError(
            f"loss.alpha is for negatives drawn by popularity, got {alpha} with"
            f" loss.negatives={negatives}"
        )
    if per_pair and negatives in SHARED_NEGATIVES:
        raise InputError(
            f"loss.per_pair must be false with loss.negatives={negatives}, whose negatives are"
            " shared by the batch"
        )


def _check_drawn(loss: str, negatives: NegativeKind) -> None:
    if negatives in SHARED_NEGATIVES:
        raise InputError(
            f"loss.negatives={negatives} needs loss.name=sampled_softmax, bpr_max or top1_max;"
            f" {loss} draws its negatives"
        )
