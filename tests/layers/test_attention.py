"""Attention: its two ways of computing are one definition."""

import itertools
import math

import pytest
import torch
from torch import nn

from recsys.layers.attention import CausalSelfAttention, SelfAttention, attend_with_dropout


class KeepFirstHalf(nn.Module):
    """A dropout whose mask is known: weights on the first half of the history stay."""

    def forward(self, weight_NTT: torch.Tensor) -> torch.Tensor:
        kept = torch.arange(weight_NTT.shape[2]) < weight_NTT.shape[2] // 2
        return weight_NTT * kept


def heads(batch: int, num_heads: int, steps: int, dim: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shape = (3, batch, num_heads, steps, dim)
    return torch.randn(shape, dtype=torch.float64).requires_grad_().unbind(0)


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(v)
    for step in range(q.shape[2]):
        score = (q[:, :, step, None] * k[:, :, : step + 1]).sum(-1) / q.shape[3] ** 0.5
        weight = score.exp() / score.exp().sum(-1, keepdim=True)
        kept = weight * (torch.arange(step + 1) < q.shape[2] // 2)
        out[:, :, step] = (kept[..., None] * v[:, :, : step + 1]).sum(-2)
    return out


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 5), (3, 2, 10, 4)])
def test_weights_are_a_softmax_over_the_past_and_then_dropped(shape):
    q, k, v = heads(*shape)
    torch.testing.assert_close(
        attend_with_dropout(q, k, v, KeepFirstHalf()), by_definition(q, k, v)
    )


def test_without_dropping_it_equals_the_fused_form_with_its_gradients():
    outcomes = []
    for attend in (
        lambda q, k, v: attend_with_dropout(q, k, v, nn.Identity()),
        lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    ):
        parts = heads(2, 3, 9, 4)
        out = attend(*parts)
        outcomes.append((out, *torch.autograd.grad((out**2).sum(), parts)))
    for got, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, wanted)


def test_dropout_in_training_keeps_the_mean():
    torch.manual_seed(0)
    attention = CausalSelfAttention(8, 2, dropout=0.3, window=4)
    x = torch.randn(4, 6, 8)
    with torch.no_grad():
        mean = torch.stack([attention.train()(x) for _ in range(3000)]).mean(dim=0)
        torch.testing.assert_close(mean, attention.eval()(x), atol=0.03, rtol=0)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of num_heads, got 8 and 3"):
        CausalSelfAttention(8, 3, dropout=0.0, window=4)
    with pytest.raises(ValueError, match="multiple of num_heads, got 8 and 3"):
        SelfAttention(8, 3, dropout=0.0)


@torch.no_grad()
def test_a_ring_of_keys_attends_over_its_last_events_and_no_more():
    torch.manual_seed(0)
    attention = CausalSelfAttention(8, 2, dropout=0.0, window=3).double().eval()
    x_BTD = torch.randn(2, 7, 8, dtype=torch.float64)
    state = attention.init_state(2)
    for end in range(1, 8):
        y_BD, state = attention.step(x_BTD[:, end - 1], state)
        expected_BTD = attention(x_BTD[:, max(0, end - 3) : end])
        torch.testing.assert_close(y_BD, expected_BTD[:, -1])


class KeepAll(nn.Module):
    """A dropout that takes the way of one and drops nothing."""

    p = 0.5

    def forward(self, weight_NMT: torch.Tensor) -> torch.Tensor:
        return weight_NMT


REAL_BT = torch.arange(5) < torch.tensor([[5], [2]])


def both_ways(attention: SelfAttention, x_BTD: torch.Tensor) -> torch.Tensor:
    """[B, T, D] one place, one head and one seen place after the other."""
    memory_BTD = attention.project_memory(x_BTD)
    mixed_BTD = torch.zeros_like(x_BTD)
    for row, place, head in itertools.product(range(2), range(5), range(2)):
        own = slice(3 * head, 3 * head + 3)
        q_K = attention.project_query(x_BTD[row, place])[own]
        seen = [memory_BTD[row, other] for other in range(5) if REAL_BT[row, other]]
        score = torch.stack([q_K @ m[:6][own] for m in seen]) / math.sqrt(3)
        weight = score.exp() / score.exp().sum()
        mixed_BTD[row, place, own] = sum(w * m[6:][own] for w, m in zip(weight, seen, strict=True))
    return attention.project_out(mixed_BTD)


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_self_attention_sees_every_real_place_before_and_behind(training):
    torch.manual_seed(0)
    attention = SelfAttention(6, 2, dropout=0.5).double().train(training)
    attention.dropout = KeepAll()
    x_BTD = torch.randn(2, 5, 6, dtype=torch.float64)
    expected_BTD = both_ways(attention, x_BTD)
    torch.testing.assert_close(attention(x_BTD, x_BTD, REAL_BT), expected_BTD)
    few = attention(x_BTD[:, [3, 0]], x_BTD, REAL_BT)
    torch.testing.assert_close(few, expected_BTD[:, [3, 0]])


def test_self_attention_drops_in_training_alone():
    torch.manual_seed(0)
    attention, x_BTD = SelfAttention(6, 2, dropout=0.5), torch.randn(2, 5, 6)
    with torch.no_grad():
        once, again = (attention(x_BTD, x_BTD, REAL_BT) for _ in range(2))
        assert not torch.equal(once, again)
        attention.eval()
        once, again = (attention(x_BTD, x_BTD, REAL_BT) for _ in range(2))
        assert torch.equal(once, again)
