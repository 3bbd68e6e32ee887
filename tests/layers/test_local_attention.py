"""Windowed attention with one global token: dense attention under its mask, at linear cost."""

import math

import pytest
import torch
from torch import Tensor, nn

from recsys.layers.local_attention import (
    LocalAttention,
    LocalAttentionWithGlobal,
    attend,
    attend_near,
    seen_reference,
)

BOTH = [LocalAttention, LocalAttentionWithGlobal]
# (tokens, window): one token, below a block, odd, full blocks, one more, many, wider than the text
SIZES = [(1, 4), (3, 8), (7, 2), (12, 4), (13, 4), (25, 6), (31, 9), (40, 64), (9, 1000)]


class KeepSome(nn.Module):
    """A dropout whose choice is known: it goes by the value alone, wherever that stands."""

    p = 0.5

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (weight > 0.2)


def build(kind: type[LocalAttention], window: int, **options: float) -> LocalAttention:
    torch.manual_seed(0)
    return kind(8, 2, window, options.get("dropout", 0.0)).double()


def texts(length: int) -> tuple[Tensor, Tensor]:
    """Four texts of 8 numbers a token; all but the first end before the padding."""
    torch.manual_seed(1)
    x_BLD = torch.randn(4, length, 8, dtype=torch.float64)
    real_B = torch.tensor([length, max(length - 1, 1), (length + 1) // 2, 1])
    return x_BLD, torch.arange(length) < real_B[:, None]


def dense(attention: LocalAttention, x_BLD: Tensor, real_BL: Tensor, kept=nn.Identity()) -> Tensor:  # noqa: B008
    """All scores, a mask, a softmax: row 0 by the first token's projections."""

    def mixed(names: tuple[str, str, str], seen_BLL: Tensor) -> Tensor:
        q, k, v = (
            getattr(attention, name)(x_BLD).unflatten(2, (2, 4)).transpose(1, 2) for name in names
        )
        score = torch.einsum("bhik,bhjk->bhij", q, k) / math.sqrt(4)
        weight = score.masked_fill(~seen_BLL[:, None], -math.inf).softmax(-1)
        return torch.einsum("bhij,bhjk->bhik", kept(weight), v).transpose(1, 2).flatten(2)

    seen_BLL = real_BL[:, None] & seen_reference(x_BLD.shape[1], attention.reach)
    own = ("query", "key", "value")
    is_global = isinstance(attention, LocalAttentionWithGlobal)
    first = tuple(f"{name}_global" for name in own) if is_global else own
    parts = [mixed(first, seen_BLL)[:, :1], mixed(own, seen_BLL)[:, 1:]]
    return attention.project_out(torch.cat(parts, dim=1))


def test_a_token_sees_half_a_window_to_each_side_and_the_first_token():
    assert seen_reference(5, reach=1).int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 1, 1, 1],
        [1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(("length", "window"), SIZES)
def test_it_equals_dense_attention_under_the_same_mask_with_its_gradients(kind, length, window):
    attention = build(kind, window)
    x_BLD, real_BL = texts(length)
    x_BLD.requires_grad_()
    weights = [x_BLD, *attention.parameters()]
    outcomes = []
    for out_BLD in (attention(x_BLD, real_BL), dense(attention, x_BLD, real_BL)):
        loss = (out_BLD[real_BL] ** 2).sum()
        outcomes.append((out_BLD[real_BL], *torch.autograd.grad(loss, weights)))
    for got, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(("length", "window"), [(13, 4), (10, 64)])
@torch.no_grad()
def test_with_dropout_its_weights_are_the_same_and_then_dropped(kind, length, window):
    attention = build(kind, window)
    attention.dropout = KeepSome()
    x_BLD, real_BL = texts(length)
    expected_BLD = dense(attention, x_BLD, real_BL, KeepSome())
    torch.testing.assert_close(attention(x_BLD, real_BL)[real_BL], expected_BLD[real_BL])


@pytest.mark.parametrize("kind", BOTH)
def test_its_gradients_are_those_of_differences(kind):
    attention = kind(2, 1, 2, 0.0).double()
    x_BLD = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    real_BL = torch.arange(5) < torch.tensor([[5], [4]])
    assert torch.autograd.gradcheck(lambda x: attention(x, real_BL)[real_BL], x_BLD)


@pytest.mark.parametrize("kind", BOTH)
@torch.no_grad()
def test_padding_changes_nothing_whatever_stands_in_it(kind):
    attention = build(kind, window=4)
    x_BLD, real_BL = texts(13)
    expected = attention(x_BLD, real_BL)[real_BL]
    x_BLD = torch.where(real_BL[..., None], x_BLD, 1e6)
    for more in (1, 7):
        longer = torch.cat([x_BLD, torch.full((4, more, 8), 1e6, dtype=torch.float64)], dim=1)
        real = nn.functional.pad(real_BL, (0, more))
        torch.testing.assert_close(attention(longer, real)[real], expected)


@torch.no_grad()
def test_a_token_out_of_the_window_is_felt_through_the_first_one_alone():
    attention = build(LocalAttention, window=4)
    x_BLD, _ = texts(20)
    real_BL = torch.ones(4, 20, dtype=torch.bool)
    other = x_BLD.clone()
    other[:, 10] += 1
    changed_L = (attention(x_BLD, real_BL) != attention(other, real_BL)).any(-1).any(0)
    assert changed_L.nonzero().flatten().tolist() == [0, 8, 9, 10, 11, 12]


def test_a_blocks_memory_does_not_grow_with_the_text():
    """Scores of one row of tokens: as many at 64 tokens as at 4,096."""
    seen = []

    class Record(nn.Module):
        p = 0.5

        def forward(self, weight: Tensor) -> Tensor:
            seen.append(weight.numel())
            return weight

    for length in (64, 4096):
        x = torch.randn(1, length, 1, 2)
        attend_near(x, x, x, torch.ones(1, length, dtype=torch.bool), 4, Record())
    assert seen == [64 * 13, 4096 * 13]


def test_single_precision_stays_near_double():
    torch.manual_seed(0)
    attention = LocalAttention(32, 4, 8, 0.0)
    x_BLD = torch.randn(2, 50, 32)
    real_BL = torch.ones(2, 50, dtype=torch.bool)
    single = attention(x_BLD, real_BL)
    double = attention.double()(x_BLD.double(), real_BL)
    torch.testing.assert_close(single.double(), double, atol=1e-5, rtol=1e-5)


def test_attention_is_a_weighted_mean_of_what_is_seen():
    x = torch.zeros(1, 2, 1, 3)
    v = torch.arange(6.0).view(1, 2, 1, 3)
    seen = torch.tensor([[[True, True], [False, True]]])
    mixed = attend(x, x, v, seen, nn.Dropout(0.0).eval())
    assert mixed.flatten(1).tolist() == [[1.5, 2.5, 3.5, 3.0, 4.0, 5.0]]


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="multiple of num_heads, got 8 and 3"):
        LocalAttention(8, 3, 4, 0.0)
    with pytest.raises(ValueError, match="window must be at least 2 tokens, got 1"):
        LocalAttention(8, 2, 1, 0.0)
