"""Elevation attention on the CPU, forward and backward, compared with another O(N) memory algorithm.

`chunked` computes a chunk of queries at a time against all keys, with plain matrix products. It materializes
the bias of the chunk and recomputes the probabilities in the backward pass. The package's algorithm works on
tokens sorted by elevation (`aqtopo_kernels.elevation_attention.cpu`). The results are compared first. Then
time in paired rounds and memory above inputs and results are measured, by number of tokens and threads.
"""

from typing import Any

import torch
from torch import Tensor

from aqtopo_kernels import elevation_attention
from benchmarks.elevation_attention import OUTPUTS, SAME, Attend, differentiate, make_inputs
from benchmarks.measure import MIB, device, parse_arguments, peak_bytes, report, time_paired

CHUNK = 256
"""Queries in a chunk: scores of 8 heads and 8192 keys take 64 MiB."""


class Chunked(torch.autograd.Function):
    """Attention of (B, H, N, D) queries, computed in chunks."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, elevation: Tensor, alpha: Tensor) -> Tensor:
        """Return the output, (B, H, N, D)."""
        out = torch.empty_like(q)
        for rows in _chunks(q):
            out[:, :, rows] = _probabilities(q, k, elevation, alpha, rows)[0] @ v
        ctx.save_for_backward(q, k, v, elevation, alpha, out)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and alpha."""
        q, k, v, elevation, alpha, out = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dalpha = torch.zeros(q.shape[1])
        for rows in _chunks(q):
            p, rise = _probabilities(q, k, elevation, alpha, rows)
            dv += p.mT @ dout[:, :, rows]
            of_row = (dout[:, :, rows] * out[:, :, rows]).sum(-1, keepdim=True)
            ds = (dout[:, :, rows] @ v.mT).sub_(of_row).mul_(p)
            dalpha -= torch.einsum("bhij,bij->h", ds, rise)
            ds *= q.shape[-1] ** -0.5
            dq[:, :, rows] = ds @ k
            dk += ds.mT @ q[:, :, rows]
        return dq, dk, dv, None, dalpha.sum_to_size(alpha.shape)


def _chunks(q: Tensor) -> list[slice]:
    return [slice(first, first + CHUNK) for first in range(0, q.shape[2], CHUNK)]


def _probabilities(
    q: Tensor, k: Tensor, elevation: Tensor, alpha: Tensor, rows: slice
) -> tuple[Tensor, Tensor]:
    """Softmax of a chunk's rows (B, H, R, N), and the rise from the queries to the keys (B, R, N) [km]."""
    rise = (elevation[:, None, :] - elevation[:, rows, None]).clamp_min_(0.0).div_(1000.0)
    scores = (q[:, :, rows] * q.shape[-1] ** -0.5) @ k.mT
    scores -= alpha.expand(q.shape[1])[:, None, None] * rise[:, None]
    return torch.softmax(scores, -1), rise


def chunked(q: Tensor, k: Tensor, v: Tensor, elevation: Tensor, alpha: Tensor) -> Tensor:
    """`Chunked` with the signature of the other contenders."""
    out: Tensor = Chunked.apply(q, k, v, elevation, alpha)
    return out


CANDIDATES: dict[str, Attend] = {"fused": elevation_attention, "chunked": chunked}


def compare(tokens: int, threads: int, rounds: int) -> dict[str, Any]:
    """Compare time and memory at a number of tokens and threads.

    Raises:
        SystemExit: the results differ.
    """
    torch.set_num_threads(threads)
    inputs = make_inputs(tokens)
    inputs[4] = inputs[4][:1]
    both = [differentiate(attend, inputs) for attend in CANDIDATES.values()]
    for name, ours, theirs in zip(OUTPUTS, *both, strict=True):
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
        if difference > SAME[torch.float32]:
            raise SystemExit(f"The candidates differ by {difference} in {name} at {tokens} tokens.")
    del both
    work = {name: lambda attend=attend: differentiate(attend, inputs) for name, attend in CANDIDATES.items()}
    timed = time_paired(work, rounds)
    memory = {name: peak_bytes(run) / MIB for name, run in work.items()}
    return {
        "N": tokens,
        "threads": threads,
        "seconds": timed.median("fused"),
        "chunked_seconds": timed.median("chunked"),
        "time_of_chunked": timed.ratio("fused", "chunked"),
        "mib": memory["fused"],
        "chunked_mib": memory["chunked"],
    }


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    if device().type != "cpu":
        raise SystemExit("A GPU is visible, but cpu_candidates runs on the CPU; set CUDA_VISIBLE_DEVICES=")
    most = torch.get_num_threads()
    sizes = [(300, 1)] if options.quick else [(1024, 7), (2048, 5), (4096, 3), (8192, 3)]
    rows = [compare(tokens, threads, rounds) for threads in sorted({1, most}) for tokens, rounds in sizes]
    report("cpu_candidates", rows, options)


if __name__ == "__main__":
    main()
