"""selective_scan in plain torch: in-place steps over [N, S, D], on any device.

The gradient is written by hand, from states that are recomputed CHUNK steps at a time: autograd's
own would keep several tensors [N, S, D] of every step.
"""

import torch
from torch import Tensor

from recsys.kernels.packing import Padded, check_cu_seqlens
from recsys.kernels.selective_scan.checkpoints import CHUNK, num_checkpoints


def forward(
    u_TD: Tensor,
    dt_TD: Tensor,
    A_SD: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    h_NSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [T, D] in the dtype of u, final [N, S, D], checkpoints [C, S, D])."""
    rows = _Rows(u_TD, dt_TD, A_SD, B_TS, C_TS, h_NSD.dtype, cu_seqlens, reset_T, reverse)
    h_NSD = h_NSD.clone(memory_format=torch.contiguous_format)
    checkpoints_CSD = h_NSD.new_empty((num_checkpoints(len(u_TD)), *h_NSD.shape[1:]))
    y_NLD = torch.empty_like(rows.dt_NLD)
    for t in range(rows.length):
        if t > 0 and t % CHUNK == 0:
            running_N, places_N = rows.checkpoints_at(t)
            checkpoints_CSD[places_N] = h_NSD[running_N]
        rows.step(t, rows.decay(t), h_NSD)
        torch.sum(h_NSD * rows.C_NLS[:, t, :, None], dim=1, out=y_NLD[:, t])
    return rows.unpad(y_NLD).to(u_TD.dtype).contiguous(), h_NSD, checkpoints_CSD


def backward(
    dy_TD: Tensor,
    dfinal_NSD: Tensor,
    u_TD: Tensor,
    dt_TD: Tensor,
    A_SD: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    h_NSD: Tensor,
    checkpoints_CSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(du [T, D], ddt [T, D], dA [S, D], dB [T, S], dC [T, S], dh [N, S, D]) of `forward`."""
    rows = _Rows(u_TD, dt_TD, A_SD, B_TS, C_TS, h_NSD.dtype, cu_seqlens, reset_T, reverse)
    dy_NLD = rows.pad(dy_TD.to(h_NSD.dtype))
    # q_t = sum over s of g_t B_t is the gradient of the product dt_t u_t.
    q_NLD, ddt_NLD = torch.empty_like(dy_NLD), torch.empty_like(dy_NLD)
    dB_NLS, dC_NLS = torch.empty_like(rows.B_NLS), torch.empty_like(rows.C_NLS)
    dA_NSD, carry_NSD = torch.zeros_like(h_NSD), dfinal_NSD.clone()
    for first in reversed(range(0, rows.length, CHUNK)):
        states = rows.states(first, h_NSD, checkpoints_CSD)
        for t in reversed(range(first, first + len(states) - 1)):
            h, after = states[t - first], states[t - first + 1]
            if rows.reset_NL is not None:
                h = h.masked_fill(rows.reset_NL[:, t, None, None], 0)
            decay = rows.decay(t)
            dy, dt = dy_NLD[:, t, None, :], rows.dt_NLD[:, t, None, :]
            torch.sum(after * dy, dim=2, out=dC_NLS[:, t])
            carry_NSD.addcmul_(rows.C_NLS[:, t, :, None], dy)
            torch.sum(carry_NSD * rows.dtu_NLD[:, t, None, :], dim=2, out=dB_NLS[:, t])
            torch.sum(carry_NSD * rows.B_NLS[:, t, :, None], dim=1, out=q_NLD[:, t])
            carry_NSD.mul_(decay)
            product = carry_NSD * h
            torch.sum(product * rows.A_SD, dim=1, out=ddt_NLD[:, t])
            dA_NSD.addcmul_(product, dt)
            if rows.reset_NL is not None:
                carry_NSD.masked_fill_(rows.reset_NL[:, t, None, None], 0)
    q_TD = rows.unpad(q_NLD)
    ddt_TD = torch.addcmul(rows.unpad(ddt_NLD), q_TD, u_TD.to(q_TD.dtype))
    dB_TS, dC_TS = rows.unpad(dB_NLS).contiguous(), rows.unpad(dC_NLS).contiguous()
    return q_TD * dt_TD, ddt_TD, dA_NSD.sum(0), dB_TS, dC_TS, carry_NSD


class _Rows(Padded):
    """Inputs as rows in walking order. Behind the end of a row dt = 0 keeps its state."""

    def __init__(
        self,
        u_TD: Tensor,
        dt_TD: Tensor,
        A_SD: Tensor,
        B_TS: Tensor,
        C_TS: Tensor,
        dtype: torch.dtype,
        cu_seqlens: Tensor,
        reset_T: Tensor | None,
        reverse: bool,
    ) -> None:
        check_cu_seqlens(cu_seqlens, len(u_TD))
        super().__init__(cu_seqlens, len(u_TD), reverse)
        self.cu_seqlens, self.A_SD = cu_seqlens, A_SD.to(dtype)
        self.dt_NLD = self.pad(dt_TD.to(dtype))
        self.dtu_NLD = self.dt_NLD * self.pad(u_TD.to(dtype))
        self.B_NLS, self.C_NLS = self.pad(B_TS.to(dtype)), self.pad(C_TS.to(dtype))
        self.reset_NL = None if reset_T is None else self.pad(reset_T, fill=False)

    def decay(self, t: int) -> Tensor:
        """[N, S, D] exp(dt_t A)."""
        return (self.dt_NLD[:, t, None, :] * self.A_SD).exp_()

    def step(self, t: int, decay: Tensor, h_NSD: Tensor) -> None:
        """Make h_t of h_{t-1}, in place."""
        if self.reset_NL is not None:
            h_NSD.masked_fill_(self.reset_NL[:, t, None, None], 0)
        h_NSD.mul_(decay).addcmul_(self.B_NLS[:, t, :, None], self.dtu_NLD[:, t, None, :])

    def checkpoints_at(self, t: int) -> tuple[Tensor, Tensor]:
        """Rows that reach step t, and the places of their states before it."""
        running_N = self.cu_seqlens.diff() > t
        return running_N, (self.cu_seqlens[:-1][running_N] + t) // CHUNK - 1

    def states(self, first: int, h_NSD: Tensor, checkpoints_CSD: Tensor) -> Tensor:
        """[<= CHUNK + 1, N, S, D] states before step `first` and after each step of its chunk."""
        last = min(first + CHUNK, self.length)
        states = h_NSD.new_empty((last - first + 1, *h_NSD.shape))
        if first == 0:
            states[0] = h_NSD
        else:
            running_N, places_N = self.checkpoints_at(first)
            states[0] = 0  # of a row that has ended; nothing depends on it
            states[0, running_N] = checkpoints_CSD[places_N]
        for t in range(first, last):
            after = states[t - first + 1].copy_(states[t - first])
            self.step(t, self.decay(t), after)
        return states
