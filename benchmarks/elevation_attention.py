"""Elevation attention, forward and backward, compared with PyTorch implementations.

Errors against float64 are checked first. An error above twice PyTorch's own ends the run. Then, for 8 heads
of 96 columns, the benchmark measures time in paired rounds, useful FLOP/s (14 H N^2 D) beside those of a
matrix product, and memory above inputs and results. The contenders are
- `dense`: the formula as published, with every N x N matrix in memory;
- `masked`: scaled_dot_product_attention with the bias as its mask;
- `plain`: the same attention without any bias, a lower bound;
- `flex`: FlexAttention with the bias as its score_mod. On the CPU it has no backward, so only its forward
  runs.

`sgemm_floor_of_X` is the lower bound of `time_of_X` on this machine: only the products, at the rate of sgemm.
On a GPU the rows also have TFLOP/s and their share of the vendor's peak, and there are rows in bfloat16,
where `plain` is flash attention and the matrix product is in bfloat16.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

from aqtopo_kernels import elevation_attention
from aqtopo_kernels.elevation_attention.reference import elevation_attention_reference
from benchmarks.measure import (
    GEMM,
    MIB,
    device,
    gpu_name,
    multiply_matrices,
    parse_arguments,
    peak_bytes,
    report,
    time_paired,
)
from benchmarks.peaks import arithmetic_columns

HEADS, WIDTH = 8, 96
ALPHAS = (2.0, 5.0, 0.0, -0.7)
FLOOR = {torch.float32: 5e-7, torch.bfloat16: 0.0, torch.float16: 0.0}
"""Errors of PyTorch below this value are replaced by it in the allowed error."""

SAME = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Allowed difference of results, relative to the largest value."""

OUTPUTS = ("out", "dq", "dk", "dv", "dalpha")

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def masked(q: Tensor, k: Tensor, v: Tensor, elevation: Tensor, alpha: Tensor) -> Tensor:
    """PyTorch's attention with the bias of every head as its mask, which needs a gradient for alpha."""
    rise = (elevation[:, None, None, :] - elevation[:, None, :, None]).clamp_min(0.0) / 1000.0
    bias = (-alpha.expand(q.shape[1])[:, None, None] * rise).to(q.dtype)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def plain(q: Tensor, k: Tensor, v: Tensor, _elevation: Tensor, _alpha: Tensor) -> Tensor:
    """PyTorch's attention without bias."""
    return functional.scaled_dot_product_attention(q, k, v)


def flex() -> Attend:
    """FlexAttention, compiled."""
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor, elevation: Tensor, alpha: Tensor) -> Tensor:
        strengths = alpha.expand(q.shape[1]).contiguous()  # FlexAttention cannot read an expanded tensor

        def bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score - strengths[h] * (elevation[b, j] - elevation[b, i]).clamp_min(0.0) / 1000.0

        return compiled(q, k, v, score_mod=bias)

    return attend


def checked_flex(dtype: torch.dtype, tolerance: float | None = None) -> dict[str, Attend]:
    """FlexAttention, checked against ours; empty, with a message, if it has no backward here."""
    tolerance = SAME[dtype] if tolerance is None else tolerance
    attend, inputs = flex(), make_inputs(256, dtype)
    try:
        found = differentiate(attend, inputs)
    except RuntimeError as error:  # any error of its compiler
        print(f"FlexAttention is left out: it does not run in {dtype}: {error}", file=sys.stderr)
        return {}
    for name, one, other in zip(OUTPUTS, found, differentiate(elevation_attention, inputs), strict=True):
        difference = float((one - other).abs().max() / other.abs().max())
        assert difference <= tolerance, f"FlexAttention and ours differ by {difference} in {name}"
    return {"flex": attend}


def make_inputs(
    tokens: int, dtype: torch.dtype = torch.float32, alpha: float = 2.0, draw: int = 0
) -> list[Tensor]:
    """Return q, k, v, elevation, alpha (one for each head) and the gradient of the output."""
    generator = torch.Generator().manual_seed(tokens + 10**6 * draw)
    q, k, v, dout = (torch.randn((1, HEADS, tokens, WIDTH), generator=generator) for _ in range(4))
    elevation = 6000.0 * torch.rand((1, tokens), generator=generator)
    strengths = torch.full((HEADS,), alpha)
    cast = [x.to(device(), dtype) for x in (q, k, v)]
    return [*cast, elevation.to(device()), strengths.to(device()), dout.to(device(), dtype)]


def differentiate(attend: Attend, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the output and the gradients of q, k, v and alpha (zeros if alpha is not used)."""
    q, k, v, elevation, alpha, dout = inputs
    leaves = [x.detach().requires_grad_() for x in (q, k, v, alpha)]
    q, k, v, alpha = leaves
    out = attend(q, k, v, elevation, alpha)
    gradients = torch.autograd.grad(out, leaves, dout, allow_unused=True, materialize_grads=True)
    return out.detach(), *gradients


def error_rows(tokens: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Rows of the largest error of each output against float64, relative to the largest value."""
    rows = []
    for alpha in ALPHAS:
        for name, (error, own) in max_errors(make_inputs(tokens, dtype, alpha)).items():
            row = {"N": tokens, "dtype": str(dtype)[6:], "alpha": alpha, "output": name}
            rows.append(row | {"error": error, "torch": own, "of_allowed": error / allowed_error(own, dtype)})
    return rows


def max_errors(inputs: list[Tensor]) -> dict[str, tuple[float, float]]:
    """Largest errors of our attention and of PyTorch's, by output."""
    exact = differentiate(elevation_attention_reference, [x.double() for x in inputs])
    both = [differentiate(attend, inputs) for attend in (elevation_attention, masked)]
    found = {}
    for name, truth, ours, theirs in zip(OUTPUTS, exact, *both, strict=True):
        error, own = (float((x.double() - truth).abs().max() / truth.abs().max()) for x in (ours, theirs))
        found[name] = error, own
    return found


def allowed_error(own: float, dtype: torch.dtype) -> float:
    """Return the allowed error, given PyTorch's own."""
    return 2 * max(own, FLOOR[dtype])


def time_attention(
    tokens: int, rounds: int, contenders: dict[str, Attend], dtype: torch.dtype, product: int
) -> dict[str, Any]:
    """Row of a forward and backward pass, with one alpha for all heads as published.

    `product` is the size of the reference matrix product.
    """
    inputs = make_inputs(tokens, dtype)
    inputs[4] = inputs[4][:1]
    gemm, (yardstick, yardstick_flop) = GEMM[dtype], multiply_matrices(product, dtype)
    work = {name: lambda f=f: differentiate(f, inputs) for name, f in contenders.items()}
    timed = time_paired(work | {gemm: yardstick}, rounds)
    memory = {name: peak_bytes(run) / MIB for name, run in work.items()}
    flop = 14.0 * HEADS * tokens**2 * WIDTH
    row: dict[str, Any] = {"N": tokens, "seconds": timed.median("fused")}
    row |= arithmetic_columns(gpu_name(), dtype, flop / timed.median("fused"))
    row["useful_gflop_s"] = flop / timed.median("fused") / 1e9
    row[f"of_{gemm}"] = flop / yardstick_flop / timed.ratio("fused", gemm)
    row[f"{gemm}_gflop_s"] = yardstick_flop / timed.median(gemm) / 1e9
    row["mib"] = memory["fused"]
    for name in (name for name in contenders if name != "fused"):
        row |= {
            f"{name}_seconds": timed.median(name),
            f"time_of_{name}": timed.ratio("fused", name),
            f"{gemm}_floor_of_{name}": flop / yardstick_flop * timed.ratio(gemm, name),
            f"{name}_mib": memory[name],
            f"memory_of_{name}": memory["fused"] / memory[name],
        }
    return row


def flex_forward(tokens: int, rounds: int) -> dict[str, Any]:
    """Row of the forward pass alone, compared with FlexAttention's."""
    *inputs, _ = make_inputs(tokens)
    attend = flex()
    with torch.no_grad():
        work = {"fused": lambda: elevation_attention(*inputs), "flex": lambda: attend(*inputs)}
        torch.testing.assert_close(work["flex"](), work["fused"](), rtol=1e-4, atol=1e-5)
        timed = time_paired(work, rounds)
    seconds = {f"{name}_forward_seconds": timed.median(name) for name in work}
    return {"N": tokens, **seconds, "forward_time_of_flex": timed.ratio("fused", "flex")}


def compare(dtype: torch.dtype, *, quick: bool) -> list[dict[str, Any]]:
    """Rows of all sizes; a GPU, which is fast, runs ten times as many rounds."""
    linear: dict[str, Attend] = {"fused": elevation_attention, "plain": plain}
    every: dict[str, Attend] = {"dense": elevation_attention_reference, "masked": masked} | linear
    on_gpu = device().type == "cuda"
    if on_gpu:
        every |= checked_flex(dtype)
    if quick:
        return [time_attention(512, 1, every, dtype, 1024)]
    times = 10 if on_gpu else 1
    sizes = [(4096, 5 * times, every), (8192, 3 * times, every), (16384, times, linear)]
    return [time_attention(*size, dtype, 4096) for size in sizes]


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    accurate = error_rows(256, torch.float32) + ([] if options.quick else error_rows(2048, torch.float32))
    for dtype in (torch.bfloat16, torch.float16):
        accurate += error_rows(256, dtype)
    wrong = [row for row in accurate if row["of_allowed"] > 1]
    if wrong:
        raise SystemExit(f"Errors are above twice PyTorch's own: {wrong}")
    rows = compare(torch.float32, quick=options.quick)
    if device().type == "cuda":
        rows += compare(torch.bfloat16, quick=options.quick)
    elif not options.quick:
        rows += [flex_forward(4096, 3)]
    report("elevation_attention", accurate + rows, options)


if __name__ == "__main__":
    main()
