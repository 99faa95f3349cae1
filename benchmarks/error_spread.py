"""Errors of elevation attention against float64 over many draws, next to PyTorch's own.

The largest error of a single draw is that of a few elements, so that ours can exceed twice PyTorch's by
chance and PyTorch's twice ours. Which it is, chance or a weakness, is told by how often each happens:
`over_twice` and `torch_over_twice` are shares of the draws, `ratio` is the median of ours by PyTorch's. Sizes
are such that blocks of queries and keys stay unfilled. Inputs and outputs are those of
`benchmarks.elevation_attention`, a quarter of the draws for each of its alphas. A median ratio above 2 ends
the run.
"""

from statistics import median
from typing import Any

import torch

from benchmarks.elevation_attention import ALPHAS, OUTPUTS, allowed, errors_of, make_inputs
from benchmarks.measure import arguments, report

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def spread(tokens: int, dtype: torch.dtype, draws: int) -> list[dict[str, Any]]:
    """A row for each output."""
    found = [
        errors_of(make_inputs(tokens, dtype, alpha, draw)) for draw in range(1, draws + 1) for alpha in ALPHAS
    ]
    return [_row(tokens, dtype, name, [errors[name] for errors in found]) for name in OUTPUTS]


def _row(tokens: int, dtype: torch.dtype, name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    ours, theirs = zip(*pairs, strict=True)
    of_theirs = [2 * error / allowed(own, dtype) for error, own in pairs]
    of_ours = [2 * own / allowed(error, dtype) for error, own in pairs]
    return {
        "N": tokens,
        "dtype": str(dtype)[6:],
        "output": name,
        "draws": len(pairs),
        "median": median(ours),
        "torch_median": median(theirs),
        "worst": max(ours),
        "torch_worst": max(theirs),
        "ratio": median(of_theirs),
        "over_twice": sum(ratio > 2 for ratio in of_theirs) / len(pairs),
        "torch_over_twice": sum(ratio > 2 for ratio in of_ours) / len(pairs),
    }


def main() -> None:
    """Print the figures."""
    options = arguments(__doc__)
    sizes, draws = ((65,), 2) if options.quick else ((330, 521), 25)
    rows = [row for tokens in sizes for dtype in DTYPES for row in spread(tokens, dtype, draws)]
    wrong = [row for row in rows if row["ratio"] > 2]
    if wrong:
        raise SystemExit(f"errors above twice PyTorch's own in most draws: {wrong}")
    report("error_spread", rows, options)


if __name__ == "__main__":
    main()
