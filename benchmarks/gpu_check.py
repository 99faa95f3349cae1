"""Check on one GPU: kernel tests, attention, gather, train step and resume, each in a process of its own.

`scripts/gpu_check.sh` starts it. A part that fails or exceeds its time limit is recorded with its error and
does not stop the others. `OUT/gpu_check.json` and `OUT/gpu_check.md` are written after each part, and
`OUT/gpu_check.log` has the parts' messages.

The time limit of all parts together is eight minutes. The rows of `attention, tf32` compare this package's
kernels, which compute in float32, with PyTorch's attention in TF32. The train step is that of
`benchmarks.train_step` and of `benchmarks.ddp` with one process. Without DeepSpeed, PyTorch's AdamW takes the
engine's place, and there is no resume.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.table import tables

Rows = Iterator[dict[str, Any]]

BUDGET_S = 460.0
"""Time limit of all parts; the script also starts Python and installs wheels."""

QUICK_PATIENCE = 5
"""Factor of the time limits with `--quick`, which may run beside other work."""

TESTS = ("test_elevation_attention_kernel", "test_wind_gather_kernel")
GRID, QUICK_GRID = (128, 256), (16, 32)
TF32_TOLERANCE = 4e-3
"""Allowed difference between results in float32 and TF32, as SAME of `benchmarks.elevation_attention`."""

NO_DEEPSPEED = "DeepSpeed is not installed; `scripts/gpu_check.sh pack` downloads it"


@dataclass(frozen=True)
class Part:
    """A part of the check: function that yields its rows, and time limit [s]."""

    rows: Callable[[bool], Rows]
    limit_s: float


def machine(_: bool) -> Rows:
    """Row of the device and the versions."""
    from benchmarks.measure import machine

    yield machine()


def kernel_tests(quick: bool) -> Rows:
    """Row of the kernel tests on the device.

    With `quick`, two of them run in Triton's interpreter.

    Raises:
        ChildProcessError: a test failed; pytest's output is on stderr.
    """
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir=.", "--import-mode=importlib"]
    command += ["--confcutdir=tests/kernels", "-p", "no:cacheprovider", "-W", "ignore", "-q"]
    command += ["-k", "device" + (" and (strides or bits)" if quick else "")]
    if find_spec("xdist") and not quick:
        command += ["-p", "xdist.plugin", "-n", "8"]  # most of the time is that of Triton's compiler
    command += [f"tests/kernels/{name}.py" for name in TESTS]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {"TRITON_INTERPRET": "1"} if quick else {}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    print(done.stdout, file=sys.stderr)
    yield {"tests": (done.stdout.splitlines() or [""])[-1]}
    if done.returncode:
        raise ChildProcessError(f"pytest exited with {done.returncode}")


def attention_errors(quick: bool) -> Rows:
    """Rows of the errors against float64.

    Raises:
        ValueError: an error is above twice PyTorch's.
    """
    import torch

    from benchmarks.elevation_attention import error_rows

    cases = [(256, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    rows = [row for case in cases[: 1 if quick else 3] for row in error_rows(*case)]
    rows += [] if quick else error_rows(2048, torch.float32)
    yield from rows
    wrong = [row for row in rows if row["of_allowed"] > 1]
    if wrong:
        raise ValueError(f"errors above twice PyTorch's: {wrong}")


def attention(kind: str, quick: bool) -> Rows:
    """Rows of attention at 8192 tokens beside SDPA with mask and without bias, and beside FlexAttention."""
    import torch

    from aqtopo_kernels import elevation_attention
    from benchmarks.elevation_attention import checked_flex, masked, plain, time_attention

    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    if kind == "tf32":
        torch.set_float32_matmul_precision("high")
    ours: dict[str, Callable[..., torch.Tensor]] = {"fused": elevation_attention}
    tokens, rounds, product = (256, 1, 512) if quick else (8192, 10, 8192)
    contenders = ours | {"masked": masked, "plain": plain}
    yield {"kind": kind} | time_attention(tokens, rounds, contenders, dtype, product)
    if quick:
        return  # compiling FlexAttention takes a minute on a CPU
    flex = checked_flex(dtype, TF32_TOLERANCE if kind == "tf32" else None)
    if flex:
        yield {"kind": kind} | time_attention(tokens, rounds, ours | flex, dtype, product)
    else:
        yield {"kind": kind, "flex": "left out: it does not run here (the log has its error)"}


def gather(quick: bool) -> Rows:
    """Rows of the gather into wind order and its inverse."""
    from benchmarks.wind_gather import measure

    yield from measure(*((1, 64, 32, 1) if quick else (1, 8192, 768, 15)))


def train_step(precision: str, quick: bool) -> Rows:
    """Rows of the step by part, and of the engine beside DDP."""
    from benchmarks import ddp
    from benchmarks import train_step as benchmark

    dtype = ddp.PRECISIONS[precision]
    small = {"dim": 32, "heads": 2, "depth": 2, "patch": 2}
    if quick:
        yield from benchmark.measure_step(QUICK_GRID, 1, dtype, 256, **small, regions=[4, 4])
    else:
        yield from benchmark.measure_step(GRID, 5, dtype, 8192)
    engine = "engine" if find_spec("deepspeed") else ddp.ADAMW
    sizes = (QUICK_GRID, 1, small) if quick else (GRID, 10, ddp.PUBLISHED)
    for row in ddp.compare_programs(*sizes, ("ddp", engine), ranks=1, precision=precision):
        yield row | ({} if engine == "engine" else {"without": NO_DEEPSPEED})


def resume(quick: bool) -> Rows:
    """Rows of a save and a verified resume of one process."""
    if find_spec("deepspeed") is None:
        yield {"not run": NO_DEEPSPEED}
        return
    from benchmarks.resume import measure

    yield from measure(quick=quick, ranks=1)


PARTS = {
    "machine": Part(machine, 60),
    "kernel tests": Part(kernel_tests, 150),
    "attention, bf16": Part(partial(attention, "bf16"), 75),
    "attention, fp32": Part(partial(attention, "fp32"), 75),
    "attention, tf32": Part(partial(attention, "tf32"), 75),
    "train step, fp32": Part(partial(train_step, "fp32"), 75),
    "train step, bf16": Part(partial(train_step, "bf16"), 75),
    "resume": Part(resume, 75),
    "attention errors": Part(attention_errors, 60),
    "gather": Part(gather, 45),
}
"""Parts by name, in the order of their importance."""


def run_part(name: str, quick: bool) -> None:
    """Print each row of a part as a line of JSON, as soon as it is known."""
    for row in PARTS[name].rows(quick):
        print(json.dumps({"row": row}), flush=True)


def start_part(name: str, quick: bool, limit_s: float, log: Path) -> dict[str, Any]:
    """Run a part in a process of its own; return its result."""
    began = time.monotonic()
    if limit_s <= 0:
        error: str | None = "no time is left for this part"
        return {"part": name, "passed": False, "seconds": 0.0, "error": error, "rows": []}
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", name, *(["--quick"] if quick else [])]
    stdout, stderr = log.with_suffix(".rows"), log.with_suffix(".part")
    with stdout.open("wb") as out, stderr.open("wb") as messages:
        process = subprocess.Popen(command, stdout=out, stderr=messages, start_new_session=True)
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the part's ranks too
            process.wait()
    rows = [json.loads(line)["row"] for line in _text(stdout).splitlines() if line.startswith('{"row": ')]
    said = _text(stderr)
    with log.open("a", encoding="utf-8") as whole:
        whole.write(f"=== {name}\n{said}\n")
    stdout.unlink()
    stderr.unlink()
    error = f"exceeded its limit of {limit_s:.0f} s" if code is None else said[-3000:] if code else None
    seconds = time.monotonic() - began
    return {"part": name, "passed": code == 0, "seconds": seconds, "error": error, "rows": rows}


def outcome(result: dict[str, Any]) -> str:
    """Return the result of a part in a word or two."""
    if not result["passed"]:
        return "FAILED"
    return "not run" if any("not run" in row for row in result["rows"]) else "passed"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def write(results: list[dict[str, Any]], quick: bool, out: Path) -> None:
    """Write the JSON and the Markdown file."""
    facts: dict[str, Any] = next(
        (row for result in results if result["part"] == "machine" for row in result["rows"]), {}
    )
    device = facts.get("device", "no GPU")
    whole = {"device": device, "quick": quick, "machine": facts, "parts": results}
    (out / "gpu_check.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    summary = [
        {"part": r["part"], "result": outcome(r), "seconds": r["seconds"]}
        | {"error": (r["error"] or "").strip().rpartition("\n")[2]}
        for r in results
    ]
    lines = [f"# {device}" + (" (quick)" if quick else ""), tables(summary)]
    lines += [f"## {r['part']}\n\n{tables(r['rows'])}" for r in results if r["rows"]]
    (out / "gpu_check.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Run all parts, or one; return 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, also on a CPU, to test the check itself"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), help="folder of the results")
    parser.add_argument("--part", choices=list(PARTS), help="run this part only and print its rows")
    options = parser.parse_args()
    if options.part:
        run_part(options.part, options.quick)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "gpu_check.log"
    log.write_text("", encoding="utf-8")
    patience = QUICK_PATIENCE if options.quick else 1
    deadline = time.monotonic() + patience * BUDGET_S
    results: list[dict[str, Any]] = []
    for name, part in PARTS.items():
        limit_s = min(patience * part.limit_s, deadline - time.monotonic())
        results.append(start_part(name, options.quick, limit_s, log))
        write(results, options.quick, options.out)
        print(
            f"{name}: {outcome(results[-1])}, {results[-1]['seconds']:.0f} s",
            flush=True,
        )
    print((options.out / "gpu_check.md").read_text(encoding="utf-8"))
    return int(not all(result["passed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
