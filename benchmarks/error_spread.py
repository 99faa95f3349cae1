"""Errors of elevation attention against float64 over many draws, and those of PyTorch's attention.

A few elements decide the largest error of a single draw, so either implementation can exceed twice the
other's error by chance. The frequency shows if it is chance: `over_twice` and `torch_over_twice` are shares
of the draws, and `ratio` is the median of our error divided by PyTorch's. The sizes leave blocks of queries
and keys partly filled. Inputs and outputs are those of `benchmarks.elevation_attention`, with a quarter of
the draws for each of its alphas. A median ratio above 2 ends the run.
"""

from statistics import median
from typing import Any

import torch

from benchmarks.elevation_attention import ALPHAS, OUTPUTS, allowed_error, make_inputs, max_errors
from benchmarks.measure import parse_arguments, report

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def error_rows(tokens: int, dtype: torch.dtype, draws: int) -> list[dict[str, Any]]:
    """Rows of all outputs."""
    found = [
        max_errors(make_inputs(tokens, dtype, alpha, draw))
        for draw in range(1, draws + 1)
        for alpha in ALPHAS
    ]
    return [_row(tokens, dtype, name, [errors[name] for errors in found]) for name in OUTPUTS]


def _row(tokens: int, dtype: torch.dtype, name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    ours, theirs = zip(*pairs, strict=True)
    of_theirs = [2 * error / allowed_error(own, dtype) for error, own in pairs]
    of_ours = [2 * own / allowed_error(error, dtype) for error, own in pairs]
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
    options = parse_arguments(__doc__)
    sizes, draws = ((65,), 2) if options.quick else ((330, 521), 25)
    rows = [row for tokens in sizes for dtype in DTYPES for row in error_rows(tokens, dtype, draws)]
    wrong = [row for row in rows if row["ratio"] > 2]
    if wrong:
        raise SystemExit(f"Errors are above twice PyTorch's own in most draws: {wrong}")
    report("error_spread", rows, options)


if __name__ == "__main__":
    main()
