"""linear_attention in plain torch: matrix products over chunks of all sequences, on any device.

Within a chunk of C steps o = A v + e (q S), with A_ij = q_i k_j E_ij for i >= j, E_ij the decay
from j to i and e_i that from the chunk's start (Dao & Gu, 2024, section 6). The delta rule puts u
in place of v, which solves (1 + M) u = beta (v - e (k S)), M_ij = beta_i k_i k_j E_ij for i > j
(the WY form of Yang et al., 2024). Each E_ij is the exp of a sum of its own: a difference of
running sums would lose weak decays behind strong ones, and has no value behind -inf.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recsys.kernels.packing import check_cu_seqlens


def states_shape(
    q_THK: Tensor, k_THK: Tensor, v_THP: Tensor, num_sequences: int, chunk_size: int
) -> tuple[int, ...]:
    """Shape of the states that `forward` keeps, one before each chunk of each sequence."""
    total, heads, key_size = q_THK.shape
    return total // chunk_size + num_sequences, heads, key_size, v_THP.shape[-1]


def forward(
    q_THK: Tensor,
    k_THK: Tensor,
    v_THP: Tensor,
    log_decay_TH: Tensor | None,
    beta_TH: Tensor | None,
    S_NHKP: Tensor,
    cu_seqlens: Tensor,
    reverse: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(o [T, H, P], final [N, H, K, P], kept states)."""
    dtype = S_NHKP.dtype
    o_THP = torch.empty_like(v_THP, memory_format=torch.contiguous_format)
    states = S_NHKP.new_empty(states_shape(q_THK, k_THK, v_THP, len(S_NHKP), chunk_size))
    final_NHKP = S_NHKP.clone(memory_format=torch.contiguous_format)
    for chunk in _chunks(cu_seqlens, len(v_THP), reverse, chunk_size):
        q, k, v = (chunk.take(x, dtype) for x in (q_THK, k_THK, v_THP))
        decays = _decays(None if log_decay_TH is None else chunk.take(log_decay_TH, dtype), q)
        S = final_NHKP[chunk.rows]
        states[chunk.slots] = S
        if beta_TH is not None:
            v = _delta(k, v, chunk.take(beta_TH, dtype), decays, S).u
        o = _weights(q, k, decays) @ v + decays.start[..., None] * (q @ S)
        chunk.put(o_THP, o)
        final_NHKP[chunk.rows] = (
            decays.whole[..., None, None] * S + (decays.end[..., None] * k).mT @ v
        )
    return o_THP, final_NHKP, states


def backward(
    do_THP: Tensor,
    dfinal_NHKP: Tensor,
    q_THK: Tensor,
    k_THK: Tensor,
    v_THP: Tensor,
    log_decay_TH: Tensor | None,
    beta_TH: Tensor | None,
    states: Tensor,
    cu_seqlens: Tensor,
    reverse: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """(dq, dk, dv, dlog_decay, dbeta, dS) of `forward`."""
    dtype = states.dtype
    inputs = (q_THK, k_THK, v_THP, log_decay_TH, beta_TH)
    gradients = [None if x is None else x.new_empty(x.shape) for x in inputs]
    dS_NHKP = dfinal_NHKP.clone(memory_format=torch.contiguous_format)
    for chunk in reversed(_chunks(cu_seqlens, len(v_THP), reverse, chunk_size)):
        q, k, v, log_decay, beta = (None if x is None else chunk.take(x, dtype) for x in inputs)
        assert q is not None
        assert k is not None
        assert v is not None
        S, dS, do = states[chunk.slots], dS_NHKP[chunk.rows], chunk.take(do_THP, dtype)
        decays = _decays(log_decay, q)
        if beta is None:
            results = _back(do, dS, q, k, v, decays, S)
            dbeta = None
        else:
            solved = _delta(k, v, beta, decays, S)
            plain = _back(do, dS, q, k, solved.u, decays, S)
            results, dbeta = _back_delta(plain, k, beta, decays, S, solved)
        dlog_decay = None if log_decay is None else _decay_gradient(results)
        parts = (results.dq, results.dk, results.dv, dlog_decay, dbeta)
        for gradient, part in zip(gradients, parts, strict=True):
            if gradient is not None and part is not None:
                chunk.put(gradient, part)
        dS_NHKP[chunk.rows] = results.dS
    dq, dk, dv, dlog_decay_TH, dbeta_TH = gradients
    assert dq is not None
    assert dk is not None
    assert dv is not None
    return dq, dk, dv, dlog_decay_TH, dbeta_TH, dS_NHKP


@dataclass(frozen=True)
class _Chunk:
    """The same C steps, in walking order, of the A sequences that are long enough to have one."""

    rows: Tensor
    """[A] sequences."""
    slots: Tensor
    """[A] places of their states among the kept ones."""
    times_AC: Tensor
    """Where the steps lie on the flat time axis."""
    real_AC: Tensor

    def take(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[A, H, C, …] of [T, H, …]; 0 behind a sequence's end, which so keeps the state."""
        taken = x[self.times_AC].to(dtype)
        return (
            torch.where(self.real_AC.view(*self.real_AC.shape, *[1] * (x.dim() - 1)), taken, 0.0)
        ).transpose(1, 2)

    def put(self, into: Tensor, x: Tensor) -> None:
        """The inverse of `take`, of the real steps."""
        into[self.times_AC[self.real_AC]] = x.transpose(1, 2)[self.real_AC].to(into.dtype)


def _chunks(cu_seqlens: Tensor, total: int, reverse: bool, chunk_size: int) -> list[_Chunk]:
    check_cu_seqlens(cu_seqlens.cpu(), total)
    lengths_N = cu_seqlens.diff()
    first_N, sign = (cu_seqlens[1:] - 1, -1) if reverse else (cu_seqlens[:-1], 1)
    slots_N = cu_seqlens[:-1] // chunk_size + torch.arange(len(lengths_N), device=cu_seqlens.device)
    longest = int(lengths_N.max()) if len(lengths_N) else 0
    chunks = []
    for start in range(0, longest, chunk_size):
        rows = (lengths_N > start).nonzero()[:, 0]
        steps = torch.arange(start, min(start + chunk_size, longest), device=cu_seqlens.device)
        real_AC = steps < lengths_N[rows, None]
        times_AC = torch.where(real_AC, first_N[rows, None] + sign * steps, 0)
        chunks.append(_Chunk(rows, slots_N[rows] + start // chunk_size, times_AC, real_AC))
    return chunks


class _Decays(NamedTuple):
    """Decays of a chunk; without log decays all 1, in shapes that broadcast."""

    pairs: Tensor
    """[A, H, C, C]: from step j to step i >= j, 0 above the diagonal."""
    start: Tensor
    """[A, H, C]: from before the chunk to step i."""
    end: Tensor
    """[A, H, C]: from step j to the last one."""
    whole: Tensor
    """[A, H]: from before the chunk to its last step."""


def _decays(log_decay: Tensor | None, q: Tensor) -> _Decays:
    size = q.shape[2]
    if log_decay is None:
        ones = q.new_ones(size)
        return _Decays(q.new_ones(size, size).tril(), ones, ones, q.new_ones(()))
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).tril(-1)
    sums = torch.where(later, log_decay[..., None], 0.0).cumsum(dim=-2)
    pairs = sums.exp().tril()
    start = log_decay.cumsum(dim=-1).exp()
    return _Decays(pairs, start, pairs[..., -1, :], start[..., -1])


def _weights(q: Tensor, k: Tensor, decays: _Decays) -> Tensor:
    """A [A, H, C, C]."""
    return ((q @ k.mT) * decays.pairs).tril()


class _Solved(NamedTuple):
    """The delta rule within a chunk."""

    overlaps: Tensor
    """[A, H, C, C] k_i k_j E_ij for i > j: M without beta."""
    stored: Tensor
    """[A, H, C, P] k S: what the state at the chunk's start says of the keys."""
    error: Tensor
    """[A, H, C, P] v - e (k S)."""
    u: Tensor
    """[A, H, C, P] what is written in place of v."""


def _delta(k: Tensor, v: Tensor, beta: Tensor, decays: _Decays, S: Tensor) -> _Solved:
    overlaps = ((k @ k.mT) * decays.pairs).tril(-1)
    stored = k @ S
    error = v - decays.start[..., None] * stored
    u = torch.linalg.solve_triangular(
        beta[..., None] * overlaps, beta[..., None] * error, upper=False, unitriangular=True
    )
    return _Solved(overlaps, stored, error, u)


class _Gradients(NamedTuple):
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dS: Tensor
    """Of the state at the chunk's start."""
    dpairs: Tensor
    """[A, H, C, C] of the logs of `_Decays.pairs`."""
    dstart: Tensor
    """[A, H, C] of the logs of `_Decays.start`."""


def _back(
    do: Tensor, dS: Tensor, q: Tensor, k: Tensor, v: Tensor, decays: _Decays, S: Tensor
) -> _Gradients:
    """The gradients of a chunk without a delta rule, dS being that of its last state."""
    weights = _weights(q, k, decays)
    dweights = (do @ v.mT).tril()
    dproducts = dweights * decays.pairs
    dq_start = decays.start[..., None] * (do @ S.mT)
    dk_end = decays.end[..., None] * (v @ dS.mT)
    dpairs = dweights * weights
    dpairs[..., -1, :] += (k * dk_end).sum(dim=-1)
    dstart = (q * dq_start).sum(dim=-1)
    dstart[..., -1] += decays.whole * (S * dS).sum(dim=(-2, -1))
    return _Gradients(
        dq=dproducts @ k + dq_start,
        dk=dproducts.mT @ q + dk_end,
        dv=weights.mT @ do + (decays.end[..., None] * k) @ dS,
        dS=decays.whole[..., None, None] * dS + (decays.start[..., None] * q).mT @ do,
        dpairs=dpairs,
        dstart=dstart,
    )


def _back_delta(
    plain: _Gradients, k: Tensor, beta: Tensor, decays: _Decays, S: Tensor, solved: _Solved
) -> tuple[_Gradients, Tensor]:
    """The gradients of a chunk with the delta rule, from those for a given u, and that of beta."""
    overlaps, stored, error, u = solved
    M = beta[..., None] * overlaps
    dright = torch.linalg.solve_triangular(M.mT, plain.dv, upper=True, unitriangular=True)
    dM = -(dright @ u.mT).tril(-1)
    dproducts = dM * beta[..., None] * decays.pairs
    dv = beta[..., None] * dright
    dstored = -decays.start[..., None] * dv
    gradients = _Gradients(
        dq=plain.dq,
        dk=plain.dk + dproducts @ k + dproducts.mT @ k + dstored @ S.mT,
        dv=dv,
        dS=plain.dS + k.mT @ dstored,
        dpairs=plain.dpairs + dM * M,
        dstart=plain.dstart + (dstored * stored).sum(dim=-1),
    )
    return gradients, (dM * overlaps).sum(dim=-1) + (dright * error).sum(dim=-1)


def _decay_gradient(gradients: _Gradients) -> Tensor:
    """[A, H, C]: the log decay of step s is in every pair j < s <= i, and in every start i >= s."""
    since_start = gradients.dstart.flip(-1).cumsum(dim=-1).flip(-1)
    pairs = gradients.dpairs.flip(-2).cumsum(dim=-2).flip(-2)
    return since_start + pairs.tril(-1).sum(dim=-1)
