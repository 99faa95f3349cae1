"""AMD's Triton attention and ours without a bias, compiled for AMD GPUs. No GPU is needed.

    export FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE
    pip download flash-attn --no-binary :all: --no-deps --no-build-isolation
    tar xzf flash_attn-*.tar.gz
    python -m benchmarks.vendor_kernels --source flash_attn-*/

The source is imported, so its code runs: use a folder that you trust. Its launch functions are called on meta
tensors, as ours are. Its forward pass is compiled in every configuration of its tuner. The table has the best
one: the highest eff1 among those without vector spills, if there are any. Its backward pass has a single
configuration. Rows have the columns of `python -m aqtopo_kernels.aot`. The vendor's kernels pad a head of 96
columns to 128, as `useful` shows; heads of 64 and 128 columns need no padding.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from aqtopo_kernels.aot.mca import find_llvm_mca
from aqtopo_kernels.aot.stand_in import Compilation, standing_in
from aqtopo_kernels.aot.survey import DTYPES, Row, row_of, survey
from benchmarks.compiled_kernels import resource_columns
from benchmarks.measure import parse_arguments, report

PACKAGE = "flash_attn_triton_amd"
KERNELS = {
    "attn_fwd": ("forward", 2),
    "_bwd_kernel_dkdv_noncausal": ("dkdv", 4),
    "_bwd_kernel_dq_noncausal": ("dq", 3),
}
"""Names of the vendor's functions and of ours, and the matrix products in their loops."""

TOKENS, HEADS = 8192, 8


def load(source: Path) -> tuple[ModuleType, ModuleType, str]:
    """Import the vendor's modules of the forward and backward pass; return them and the version.

    Raises:
        ValueError: the folder is not a source tree of flash-attn with these modules.
    """
    folder = source / "flash_attn" / PACKAGE
    try:
        about = (source / "flash_attn" / "__init__.py").read_text(encoding="utf-8")
        spec = spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[PACKAGE] = package = module_from_spec(spec)
        spec.loader.exec_module(package)
        names = ("fwd_prefill", "bwd_prefill_split")
        forward, backward = (import_module(f"{PACKAGE}.{name}") for name in names)
    except (OSError, ImportError) as error:
        raise ValueError(
            f"{source} is not a source tree of flash-attn with flash_attn/{PACKAGE} ({error}). Download and "
            "unpack its source distribution, as described in this module's docstring, and pass that folder."
        ) from error
    version = re.search(r'__version__ = "([^"]+)"', about)
    return forward, backward, version[1] if version else "of unknown version"


def meta_tensors(dtype: torch.dtype, head_dim: int) -> tuple[Tensor, ...]:
    """Return meta tensors q, k, v (1, HEADS, TOKENS, head_dim), in the layout of a model's projection."""
    qkv = torch.empty((1, TOKENS, 3 * HEADS * head_dim), dtype=dtype, device="meta")
    return tuple(x.view(1, TOKENS, HEADS, head_dim).transpose(1, 2) for x in qkv.chunk(3, -1))


def launch_forward(module: ModuleType, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Launch the vendor's forward pass without mask, bias or dropout."""
    lengths = {"max_seqlens_q": TOKENS, "max_seqlens_k": TOKENS}
    launch(module.attention_prefill_forward_triton_impl, q=q, k=k, v=v, o=torch.empty_like(q), **lengths)


def launch_backward(module: ModuleType, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Launch the vendor's backward pass in its default form, two kernels."""
    lengths = {"max_seqlen_q": TOKENS, "max_seqlen_k": TOKENS}
    names = ("o", "do", "dq", "dk", "dv")
    outs = {name: torch.empty_like(q) for name in names}
    lse = torch.empty(q.shape[:3], device="meta")
    function = module.attention_prefill_backward_triton_split_impl
    launch(function, q=q, k=k, v=v, softmax_lse=lse, **outs, **lengths)


def launch(function: Callable[..., object], **given: object) -> None:
    """Call one of the vendor's launch functions, with None for the parameters that are not given."""
    given |= {"sm_scale": 0.1, "causal": False, "layout": "bhsd", "dropout_p": 0.0, "use_exp2": True}
    function(**{name: given.get(name) for name in inspect.signature(function).parameters})


def vendor_rows(
    forward: ModuleType, backward: ModuleType, arch: str, dtype: str, head_dim: int
) -> Iterator[Row]:
    """Yield a row for each compilation of the vendor's kernels that fits into the LDS."""
    q, k, v = meta_tensors(DTYPES[dtype], head_dim)
    configurations, _ = forward.get_cdna_autotune_configs()
    works = [lambda: launch_backward(backward, q, k, v)]
    for configuration in (*forward.autotune_configs, *configurations):
        works.append(partial(launch_tuned, forward, configuration, q, k, v))
    for work in works:
        for compilation in compile_launch(work, arch):
            if compilation.function in KERNELS:
                yield row_of(compilation, arch, dtype, head_dim, *KERNELS[compilation.function])


def launch_tuned(forward: ModuleType, configuration: object, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Launch the forward pass with a single configuration in its tuner."""
    forward.attn_fwd.configs = [configuration]
    launch_forward(forward, q, k, v)


def compile_launch(work: Callable[[], object], arch: str) -> list[Compilation]:
    """Return the compilations of a launch; none, with a message on stderr, if it needs too much LDS."""
    with standing_in(arch) as compilations:
        try:
            work()
        except OutOfResources as error:
            print(f"left out on {arch}: {error}", file=sys.stderr)
            return []
    return compilations


def best_rows(rows: Iterable[Row]) -> dict[str, Row]:
    """Return for each kernel the row with the highest eff1, if possible without vector spills."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row["vgpr_spills"] == 0, row["eff1"] or 0.0)):
        found[row["kernel"]] = row
    return found


def our_rows(arch: str, dtype: str, head_dim: int) -> dict[str, Row]:
    """Return our rows without a bias, by the kernel names of the vendor's rows."""
    rows = (row for row, _ in survey([arch], [dtype], head_dim=head_dim, heads=HEADS, tokens=TOKENS))
    plain = (row for row in rows if row["kernel"].endswith("_plain"))
    return {(name := row["kernel"].removesuffix("_plain")): row | {"kernel": name} for row in plain}


def table_row(row: Row, whose: str) -> dict[str, Any]:
    """A row of the table."""
    config = row["config"]
    return (
        {name: row[name] for name in ("arch", "dtype", "head_dim", "kernel")}
        | {"whose": whose, "M, N, warps": f"{config['block_m']}, {config['block_n']}, {config['num_warps']}"}
        | resource_columns(row)
    )


def clocks_per_product(rows: dict[str, Row]) -> float:
    """Return the clocks of all loops divided by the ideal clocks of their matrix products; at least 1."""
    work = dict(KERNELS.values())
    return sum(products / rows[kernel]["eff1"] for kernel, products in work.items()) / sum(work.values())


def compare(source: Path, archs: list[str], dtypes: list[str], head_dims: list[int]) -> list[dict[str, Any]]:
    """Rows of each best vendor kernel and ours, then the ratios of our clocks to the vendor's."""
    forward, backward, version = load(source)
    rows, ratios = [], []
    for arch in archs:
        for head_dim in head_dims:
            for dtype in dtypes:
                theirs = best_rows(vendor_rows(forward, backward, arch, dtype, head_dim))
                ours = our_rows(arch, dtype, head_dim)
                for kernel, _ in KERNELS.values():
                    rows += [
                        table_row(theirs[kernel], f"flash-attn {version}"),
                        table_row(ours[kernel], "ours"),
                    ]
                key = {"arch": arch, "dtype": dtype, "head_dim": head_dim}
                ratios.append(
                    key | {"clocks_of_vendor": clocks_per_product(ours) / clocks_per_product(theirs)}
                )
    return rows + ratios


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__, source="unpacked source distribution of flash-attn, or a checkout")
    if find_llvm_mca() is None:
        raise SystemExit("vendor_kernels needs llvm-mca to compute eff1; install it (Debian: llvm-22).")
    sizes = (
        (["gfx90a"], ["bf16"], [96])
        if options.quick
        else (["gfx90a", "gfx942"], ["fp32", "bf16"], [64, 96, 128])
    )
    try:
        rows = compare(options.source, *sizes)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    report("vendor_kernels --source DIR", rows, options)


if __name__ == "__main__":
    main()
