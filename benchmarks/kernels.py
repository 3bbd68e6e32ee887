"""The kernels on a CPU beside a memory floor and what else could compute the same, in one run.

    python benchmarks/kernels.py                       (every case, one thread)
    python benchmarks/kernels.py linear_scan-256 --threads 2

Milliseconds, the best of many runs after a warm-up. Run nothing beside it. The loss runs each
contender in a process of its own, for its peak memory over its inputs.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import emit
from torch import Tensor

from recsys.kernels import (
    linear_cross_entropy,
    linear_scan,
    rnn_scan,
    selective_scan,
    softmax_scan,
)
from recsys.kernels.rnn_scan import GRU
from recsys.training.memory import keep_freed_memory

Figures = dict[str, Any]


def best(run: Callable[[], object], seconds: float = 2.0, most: int = 40) -> float:
    """Milliseconds of the fastest run of as many as fit into `seconds`, two at least."""
    run()
    times: list[float] = []
    while len(times) < 2 or (sum(times) < seconds and len(times) < most):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(min(times) * 1e3, 3)


def both(run: Callable[..., Tensor], *inputs: Tensor) -> tuple[float, float]:
    """(forward alone, forward and backward) of run(*inputs) -> output, in milliseconds."""
    with torch.no_grad():
        forward = best(lambda: run(*inputs))
    given = [x.detach().requires_grad_() for x in inputs]
    dy = torch.randn_like(run(*given))
    return forward, best(lambda: torch.autograd.grad(run(*given), given, dy))


def scan_case(B: int, L: int, D: int) -> Figures:
    """linear_scan beside the floor of its memory traffic and three parallel forms."""
    from torch._higher_order_ops.associative_scan import associative_scan

    a, b = torch.rand(B, L, D), torch.randn(B, L, D)

    def after(first: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return then[0] * first[0], then[0] * first[1] + then[1]

    def higher_order(a: Tensor, b: Tensor) -> Tensor:
        return associative_scan(after, (a, b), dim=1, combine_mode="generic")[1]

    y, da, db, dy = (torch.randn_like(b) for _ in range(4))

    def products() -> None:
        torch.mul(a, b, out=y)
        torch.mul(a, dy, out=db)
        torch.mul(y, dy, out=da)

    # Forward 3 N numbers; both ways 8 N, of which three products over the same memory move 9 N.
    floor = best(lambda: torch.mul(a, b, out=y))
    rows: Figures = {"floor": [floor, round(best(products) * 8 / 9, 3)]}
    for backend in ("cpu", "torch"):
        rows[backend] = both(lambda a, b, name=backend: linear_scan(a, b, backend=name), a, b)
    rows["associative_scan"] = both(higher_order, a, b)
    rows["blelloch"] = both(blelloch, a, b)
    forward, total = rows["cpu"]
    rows["over_floor"] = [round(forward / floor, 2), round(total / rows["floor"][1], 2)]
    return rows


def blelloch(a: Tensor, b: Tensor) -> Tensor:
    """The work-efficient parallel scan (Blelloch, 1990): pairs are joined, scanned, spread."""
    length = b.shape[1]
    if length == 1:
        return b
    if length % 2:
        whole = blelloch(a[:, :-1], b[:, :-1])
        return torch.cat([whole, a[:, -1:] * whole[:, -1:] + b[:, -1:]], dim=1)
    a_even, a_odd, b_even, b_odd = a[:, 0::2], a[:, 1::2], b[:, 0::2], b[:, 1::2]
    odd = blelloch(a_odd * a_even, a_odd * b_even + b_odd)
    before = F.pad(odd[:, :-1], (0, 0, 1, 0))
    return torch.stack([a_even * before + b_even, odd], dim=2).flatten(1, 2)


def softmax_case() -> Figures:
    """softmax_scan (128, 1000, 1 x 64), and dense masked softmax at (128, 200)."""

    def dense(s: Tensor, v: Tensor) -> Tensor:
        length = s.shape[1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        score = s[:, None, :, 0].expand(-1, length, -1).masked_fill(future, -torch.inf)
        return (torch.softmax(score, dim=-1) @ v[:, :, 0])[:, :, None]

    s, v = torch.randn(128, 1000, 1), torch.randn(128, 1000, 1, 64)
    short = s[:, :200].contiguous(), v[:, :200].contiguous()
    return {
        "cpu": both(softmax_scan, s, v),
        "torch": both(lambda s, v: softmax_scan(s, v, backend="torch"), s, v),
        "cpu, L = 200": both(softmax_scan, *short),
        "dense masked softmax, L = 200": both(dense, *short),
    }


def selective_case() -> Figures:
    """selective_scan (128, 50, 128, N = 16), and the same with [B, L, D, N] in memory."""
    u, dt = torch.randn(128, 50, 128), torch.rand(128, 50, 128)
    A, B, C = -torch.rand(128, 16), torch.randn(128, 50, 16), torch.randn(128, 50, 16)

    def materialised(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        decay = torch.exp(dt[..., None] * A)
        h = linear_scan(decay, (dt * u)[..., None] * B[:, :, None])
        return (h * C[:, :, None]).sum(-1)

    return {
        "cpu": both(selective_scan, u, dt, A, B, C),
        "torch": both(lambda *x: selective_scan(*x, backend="torch"), u, dt, A, B, C),
        "materialised": both(materialised, u, dt, A, B, C),
    }


def rnn_case() -> Figures:
    """rnn_scan, diagonal GRU (128, 200, 64), and torch's GRU with its input projection."""
    u, params = torch.randn(128, 200, 3, 64), torch.rand(3, 64) * 0.9
    x, gru = torch.randn(128, 200, 64), torch.nn.GRU(64, 64, batch_first=True)
    return {
        "cpu walk": both(lambda u, p: rnn_scan(GRU, u, p), u, params),
        "torch walk": both(lambda u, p: rnn_scan(GRU, u, p, backend="torch"), u, params),
        "newton": both(lambda u, p: rnn_scan(GRU, u, p, method="newton"), u, params),
        "nn.GRU": both(lambda x: gru(x)[0], x),
    }


CONTENDERS = ("ours", "torch auto", "torch batch_chunk 256", "plain")


def loss_case(num_items: int, dtype: str = "float32", num_rows: int = 6400) -> Figures:
    """linear_cross_entropy, both directions: {contender: [ms, MB over its inputs, loss]}."""
    rows: Figures = {}
    for contender in CONTENDERS:
        if num_items >= 100_000 and contender == "plain":
            rows[contender] = "not run: its logits would be more than 2 GB"
            continue
        if num_items >= 1_000_000 and contender != "ours":
            rows[contender] = "not run: minutes (4 rows a chunk), see 100,000 items"
            continue
        threads = torch.get_num_threads()
        command = [sys.executable, __file__, "--one", contender, "--threads", str(threads)]
        command += ["--shape", str(num_rows), str(num_items), "--dtype", dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[contender] = json.loads(done.stdout.splitlines()[-1])
    return rows


def one_loss(contender: str, num_rows: int, num_items: int, dtype: str) -> list[float]:
    """[ms, MB, loss] of one contender in this process."""
    from torch.nn import LinearCrossEntropyOptions  # new in torch 2.13

    low = dtype == "bfloat16"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 64, generator=generator).requires_grad_()
    table = (torch.randn(num_items, 64, generator=generator) * 0.1).requires_grad_()
    target = torch.randint(num_items, (num_rows,), generator=generator)

    def native(options: LinearCrossEntropyOptions) -> Callable[[int], Tensor]:
        def run(rows: int) -> Tensor:
            given = (x[:rows].bfloat16(), table.bfloat16()) if low else (x[:rows], table)
            return F.linear_cross_entropy(*given, target[:rows], options=options)

        return run

    def plain(rows: int) -> Tensor:
        given = (x[:rows].bfloat16(), table.bfloat16()) if low else (x[:rows], table)
        return F.cross_entropy(F.linear(*given), target[:rows])

    runs: dict[str, Callable[[int], Tensor]] = {
        "ours": lambda rows: linear_cross_entropy(
            x[:rows], table, target[:rows], compute_dtype=torch.bfloat16 if low else None
        ),
        "torch auto": native(LinearCrossEntropyOptions()),
        "torch batch_chunk 256": native(
            LinearCrossEntropyOptions(batch_chunk_size=256, chunking_method=None)
        ),
        "plain": plain,
    }
    run = runs[contender]
    torch.autograd.grad(run(4), (x, table))  # libraries load and compile
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before = _status_mb("VmRSS")
    loss = run(num_rows)
    times = []
    while len(times) < 1 or (sum(times) < 5 and len(times) < 10):
        start = time.perf_counter()
        torch.autograd.grad(run(num_rows), (x, table))
        times.append(time.perf_counter() - start)
    peak = _status_mb("VmHWM") - before
    return [round(min(times) * 1e3, 1), round(peak), round(float(loss.detach()), 5)]


def _status_mb(field: str) -> float:
    """A size of this process in MB, on Linux: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


CASES: dict[str, Callable[[], Figures]] = {
    "linear_scan-256": lambda: scan_case(128, 200, 256),
    "linear_scan-64": lambda: scan_case(128, 200, 64),
    "softmax_scan": softmax_case,
    "selective_scan": selective_case,
    "rnn_scan": rnn_case,
    "linear_cross_entropy-12k": lambda: loss_case(12_000),
    "linear_cross_entropy-12k-bf16": lambda: loss_case(12_000, "bfloat16"),
    "linear_cross_entropy-100k": lambda: loss_case(100_000),
    "linear_cross_entropy-1m": lambda: loss_case(1_000_000),
}


def main() -> None:
    """Run the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--shape", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as in a training
    torch.manual_seed(0)
    if options.one:
        print(json.dumps(one_loss(options.one, *options.shape, options.dtype)))
        return
    for name in options.cases or CASES:
        emit(f"kernel {name}", {"ms": CASES[name]()})


if __name__ == "__main__":
    main()
