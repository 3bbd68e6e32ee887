"""The kernels on an NVIDIA GPU beside their floors and the peers that are installed there.

    python benchmarks/gpu.py                 (every case)
    python benchmarks/gpu.py scan loss       (some)

Microseconds, the median of many runs after a warm-up, by device events; what the first call costs
(compilation) stands apart. A floor is the bytes that must move over the bandwidth of a large copy,
measured in the same run. Small problems stay in the GPU's cache, where it is no bound.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from machine import emit
from torch import Tensor

from recsys.kernels import (
    GRU,
    linear_attention,
    linear_cross_entropy,
    linear_scan,
    rnn_scan,
    selective_scan,
    softmax_scan,
)

Run = Callable[..., Tensor]
Figures = dict[str, Any]
DEVICE = "cuda"


def median(run: Callable[[], object]) -> float:
    """Microseconds."""
    from triton.testing import do_bench

    return round(do_bench(run, warmup=50, rep=200, return_mode="median") * 1e3, 2)


def both(run: Run, *inputs: Tensor) -> Figures:
    """First call in seconds, forward and forward with backward in microseconds."""
    given = [x.detach().requires_grad_() for x in inputs]
    start = time.perf_counter()
    y = run(*given)
    dy = torch.randn_like(y)
    torch.autograd.grad(y, given, dy)
    torch.cuda.synchronize()
    first = round(time.perf_counter() - start, 2)
    with torch.no_grad():
        forward = median(lambda: run(*given))
    return {
        "first_seconds": first,
        "forward": forward,
        "both": median(lambda: torch.autograd.grad(run(*given), given, dy)),
    }


def bandwidth() -> float:
    """Bytes a second of a copy of 1 GB, read and written."""
    source = torch.empty(1 << 28, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median(lambda: target.copy_(source)) * 1e-6)


def floor(speed: float, forward: int, backward: int) -> list[float]:
    """[forward, both] microseconds for these bytes."""
    return [round(n / speed * 1e6, 2) for n in (forward, forward + backward)]


def peer(package: str, run: Run, *inputs: Tensor) -> Figures | str:
    """A peer's figures, or why there are none."""
    if importlib.util.find_spec(package) is None:
        return f"not taken: {package} is not installed"
    return both(run, *inputs)


def scan(speed: float) -> None:
    """linear_scan, real and complex, at the shapes of the study."""

    def after(first: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return then[0] * first[0], then[0] * first[1] + then[1]

    def higher_order(a: Tensor, b: Tensor) -> Tensor:
        from torch._higher_order_ops.associative_scan import associative_scan

        return associative_scan(after, (a, b), dim=1)[1]

    def accelerated(a: Tensor, b: Tensor) -> Tensor:
        from accelerated_scan.scalar import scan

        return scan(a.transpose(1, 2).contiguous(), b.transpose(1, 2).contiguous()).transpose(1, 2)

    def hgrn(a: Tensor, b: Tensor) -> Tensor:
        from fla.ops.hgrn import chunk_hgrn

        return chunk_hgrn(b, a.log())[0]

    compiled = torch.compile(higher_order)
    shapes = [(128, 50, 64), (128, 200, 64), (128, 200, 256), (1024, 200, 256), (128, 1000, 256)]
    for shape in [*shapes, (16, 16384, 128)]:
        for dtype in (torch.float32, torch.bfloat16):
            a, b = torch.rand(shape, device=DEVICE).to(dtype), torch.randn(shape, device=DEVICE)
            b = b.to(dtype)
            size = b.nbytes
            emit(
                "gpu linear_scan",
                {
                    "shape": shape,
                    "dtype": str(dtype),
                    "floor": floor(speed, 3 * size, 5 * size),
                    "triton": both(linear_scan, a, b),
                    "torch": both(lambda a, b: linear_scan(a, b, backend="torch"), a, b),
                    "compiled associative_scan": _without_gradient(compiled, a, b),
                    "accelerated_scan": peer("accelerated_scan", accelerated, a, b),
                    "fla chunk_hgrn": peer("fla", hgrn, a, b),
                },
            )
    b = torch.randn(128, 200, 128, device=DEVICE, dtype=torch.complex64)
    for name, a in (("constant", torch.rand(128, device=DEVICE) + 0j), ("full", 0.5 * b)):
        moved = 2 if name == "constant" else 3
        emit(
            "gpu linear_scan complex",
            {
                "a": name,
                "floor": floor(speed, moved * b.nbytes, (moved + 1) * b.nbytes),
                "triton": both(linear_scan, a, b),
            },
        )


def _without_gradient(run: Run, *inputs: Tensor) -> Figures | str:
    """Forward alone; the compiler's own message where it does not run."""
    try:
        with torch.no_grad():
            run(*inputs)
            return {"forward": median(lambda: run(*inputs))}
    except Exception as error:  # a peer's failure is a result
        return f"failed: {type(error).__name__}: {str(error)[:200]}"


def softmax(speed: float) -> None:
    """softmax_scan beside causal attention at the same shape."""
    for B, L, H, K in ((128, 200, 2, 32), (1024, 200, 4, 64)):
        for dtype in (torch.float32, torch.bfloat16):
            s = torch.randn(B, L, H, device=DEVICE)
            v = torch.randn(B, L, H, K, device=DEVICE).to(dtype)
            q, k = (torch.randn(B, H, L, K, device=DEVICE).to(dtype) for _ in range(2))
            values = v.transpose(1, 2).contiguous()

            def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

            emit(
                "gpu softmax_scan",
                {
                    "shape": [B, L, H, K],
                    "dtype": str(dtype),
                    "floor": floor(speed, 2 * v.nbytes, 4 * v.nbytes),
                    "triton": both(softmax_scan, s, v),
                    "causal attention": both(causal, q, k, values),
                },
            )


def selective(speed: float) -> None:
    """selective_scan beside Mamba's own kernel where it is installed."""

    def mamba(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        u, dt, B, C = (x.transpose(1, 2).contiguous() for x in (u, dt, B, C))
        return selective_scan_fn(u, dt, A, B, C).transpose(1, 2)

    for rows in (128, 1024):
        u = torch.randn(rows, 200, 128, device=DEVICE)
        dt, A = torch.rand_like(u), -torch.rand(128, 16, device=DEVICE)
        B, C = (torch.randn(rows, 200, 16, device=DEVICE) for _ in range(2))
        emit(
            "gpu selective_scan",
            {
                "shape": [rows, 200, 128, 16],
                "floor": floor(speed, 3 * u.nbytes + 2 * B.nbytes, 6 * u.nbytes + 4 * B.nbytes),
                "triton": both(selective_scan, u, dt, A, B, C),
                "torch": both(lambda *x: selective_scan(*x, backend="torch"), u, dt, A, B, C),
                "mamba_ssm": peer("mamba_ssm", mamba, u, dt, A, B, C),
            },
        )


def attention(speed: float) -> None:
    """linear_attention with decay, in chunks."""

    def attend(backend: Any) -> Run:
        return lambda q, k, v, d: linear_attention(q, k, v, log_decay=d, backend=backend)

    for B, L, H, K, P in ((128, 200, 4, 64, 32), (1024, 200, 4, 64, 64)):
        for dtype in (torch.float32, torch.bfloat16):
            q, k = (torch.randn(B, L, H, K, device=DEVICE).to(dtype) / 8 for _ in range(2))
            v = torch.randn(B, L, H, P, device=DEVICE).to(dtype)
            decay = -torch.rand(B, L, H, device=DEVICE)
            moved = q.nbytes + k.nbytes + 2 * v.nbytes
            emit(
                "gpu linear_attention",
                {
                    "shape": [B, L, H, K, P],
                    "dtype": str(dtype),
                    "floor": floor(speed, moved, 2 * moved),
                    "triton": both(attend("triton"), q, k, v, decay),
                    "torch": both(attend("torch"), q, k, v, decay),
                },
            )


def rnn(speed: float) -> None:
    """rnn_scan, diagonal GRU, beside cuDNN's GRU."""
    for B, L, D in ((128, 200, 64), (1024, 200, 256)):
        u, params = torch.randn(B, L, 3, D, device=DEVICE), torch.rand(3, D, device=DEVICE)
        x, gru = torch.randn(B, L, D, device=DEVICE), torch.nn.GRU(D, D, batch_first=True)
        gru = gru.to(DEVICE)
        emit(
            "gpu rnn_scan",
            {
                "shape": [B, L, D],
                "floor": floor(speed, 4 * x.nbytes, 8 * x.nbytes),
                "triton": both(lambda u, p: rnn_scan(GRU, u, p), u, params),
                "newton": both(lambda u, p: rnn_scan(GRU, u, p, method="newton"), u, params),
                "cuDNN": both(lambda x, gru=gru: gru(x)[0], x),
            },
        )


def loss(speed: float) -> None:
    """linear_cross_entropy, both ways, with peak memory and the error of its gradients."""
    target_rows = 6400
    for items in (12_000, 100_000, 1_000_000):
        for dim in (64, 256):
            x = torch.randn(target_rows, dim, device=DEVICE).bfloat16()
            table = (0.1 * torch.randn(items, dim, device=DEVICE)).bfloat16()
            target = torch.randint(items, (target_rows,), device=DEVICE)
            rivals = _rivals(target, plain=items <= 100_000)
            # 8 N V D operations, the logits computed twice; an H100 does 800 T a second in bf16.
            operations = round(8 * target_rows * items * dim / 800e12 * 1e6, 1)
            emit(
                "gpu linear_cross_entropy",
                {"items": items, "dim": dim, "floor_by_operations": operations}
                | {name: _loss_figures(run, x, table) for name, run in rivals.items()},
            )


def _rivals(target: Tensor, plain: bool) -> dict[str, Run]:
    rivals: dict[str, Run] = {
        "triton": lambda x, w: linear_cross_entropy(x, w, target),
        "torch": lambda x, w: linear_cross_entropy(x, w, target, backend="torch"),
    }
    if plain:
        rivals["plain"] = lambda x, w: F.cross_entropy(F.linear(x, w), target)
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # new in torch 2.13
        options = torch.nn.LinearCrossEntropyOptions()
        rivals["torch auto"] = lambda x, w: F.linear_cross_entropy(x, w, target, options=options)
    return rivals


def _loss_figures(run: Run, x: Tensor, table: Tensor) -> Figures:
    figures = both(run, x, table)
    given = [part.detach().requires_grad_() for part in (x, table)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once = torch.autograd.grad(run(*given), given)
    figures["peak_mb"] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    again = torch.autograd.grad(run(*given), given)
    figures["same_bits"] = all(torch.equal(*pair) for pair in zip(once, again, strict=True))
    return figures


CASES: dict[str, Callable[[float], None]] = {
    "scan": scan,
    "softmax": softmax,
    "selective": selective,
    "attention": attention,
    "rnn": rnn,
    "loss": loss,
}

if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs an NVIDIA GPU: nothing was measured")
    torch.manual_seed(0)
    measured = statistics.median(bandwidth() for _ in range(3))
    emit("gpu copy", {"bytes_a_second": round(measured)})
    for name in sys.argv[1:] or CASES:
        CASES[name](measured)
