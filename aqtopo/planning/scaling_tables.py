"""What is modelled of a run on a machine, for people and programs: tables, rows, a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from aqtopo.planning.hardware import Assumptions, Machine
from aqtopo.planning.plan import Plan
from aqtopo.planning.scaling import StepTime, efficiency
from aqtopo.planning.tables import readable_bytes
from aqtopo.planning.traffic import step_collectives


def scaling_tables(
    plan: Plan, machine: Machine, assumptions: Assumptions, here: StepTime, rows: Sequence[StepTime]
) -> Iterator[Table]:
    """The tables of a machine, in reading order.

    Args:
        plan: the run.
        machine: its nodes.
        assumptions: what is not known.
        here: the step at the run's own number of nodes.
        rows: the step at others, from one node on.
    """
    yield _arithmetic(plan)
    yield _step(plan, machine, assumptions, here)
    yield _scaling(rows, machine)


def _arithmetic(plan: Plan) -> Table:
    arithmetic = plan.arithmetic
    table = Table(title=f"Arithmetic of a micro-step of {plan.config.micro_batch} sample(s) on one rank")
    for name, justify in (("part", "left"), ("TFLOP forward", "right"), ("how known", "left")):
        table.add_column(name, justify="left" if justify == "left" else "right")
    for name, count in arithmetic.products.items():
        table.add_row(name, f"{count / 1e12:.4g}", "counted on the meta device")
    table.add_row("attention", f"{arithmetic.attention / 1e12:.4g}", "formula")
    if arithmetic.float32_attention:
        table.add_row("of it in float32", f"{arithmetic.float32_attention / 1e12:.4g}", "formula: local bias")
    table.add_section()
    table.add_row("forward", f"{arithmetic.forward / 1e12:.4g}", "sum")
    table.add_row("backward", f"{arithmetic.backward / 1e12:.4g}", "2 x products + 2.5 x attention")
    return table


def _step(plan: Plan, machine: Machine, assumptions: Assumptions, here: StepTime) -> Table:
    config, share = plan.config, assumptions.network_share
    elements = {name: group.parameters for name, group in plan.groups.items()}
    network = machine.narrowest(here.nodes)
    precision = config.deepspeed.precision
    table = Table(title=f"A step on {here.nodes} node(s) of {machine.name}, {here.world} ranks")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("how known")
    used = plan.peak / machine.memory
    table.add_row("memory of a rank", f"{used:.1%} of {machine.memory / 1e9:.0f} GB", "estimate, see above")
    for collective in step_collectives(elements, config, config.accumulation):
        sent = readable_bytes(round(collective.sent(here.world)))
        known = (
            f"{collective.kind}, {collective.times} x {collective.messages} message(s) a step: a ring's bytes"
        )
        table.add_row(f"{collective.name} sent by a rank", sent, known)
    table.add_section()
    peak = f"{machine.flops[precision] / 1e12:.4g} TFLOP/s assumed"
    if plan.arithmetic.float32_attention:
        peak += f", in float32 of {machine.flops['fp32'] / 1e12:.4g}"
    for name, seconds, known in (
        (
            "forward and backward",
            here.compute_s,
            f"{assumptions.utilization:.0%} of {peak}",
        ),
        ("reducing gradients", here.reduce_s, f"{share:.0%} of {network / 1e9:.0f} GB/s assumed"),
        ("of this, overlapped", 0.0 - here.hidden_s, _overlap(plan)),
        ("gathering weights", here.gather_s, "likewise"),
        ("AdamW", here.optimizer_s, f"{machine.memory_rate / 1e12:.4g} TB/s of memory assumed"),
    ):
        table.add_row(name, f"{1e3 * seconds:.1f} ms", f"modelled: {known}")
    table.add_row("[bold]step", f"[bold]{1e3 * here.seconds:.1f} ms", "modelled: sum")
    table.add_row("samples/s", f"{here.samples_per_s:.0f}", "modelled")
    table.add_row("the whole run", f"{_hours(plan, here):.1f} h", "modelled, without validation and saving")
    table.add_section()
    limit = machine.storage / here.nodes
    table.add_row(
        "read by a node",
        f"{here.loader_rate / 1e6:.1f} MB/s",
        f"uncompressed, nothing cached; its share of the file system is {limit / 1e6:.0f} MB/s (assumed)",
    )
    return table


def _overlap(plan: Plan) -> str:
    """Why as much, or as little, of the reduction runs beside the backward pass."""
    zero = plan.config.deepspeed.zero_optimization
    if not zero.overlap_comm:
        return "zero_optimization.overlap_comm is off"
    if zero.reduce_bucket_size >= plan.parameters:
        return "all gradients fit one reduce_bucket_size, which leaves only when the backward pass is over"
    return "all buckets but the last"


def _hours(plan: Plan, here: StepTime) -> float:
    """Time of the run as configured: its number of steps follows from its own batch."""
    return plan.calendar.total_steps * here.seconds / 3600


def _scaling(rows: Sequence[StepTime], machine: Machine) -> Table:
    table = Table(
        title=f"Scaling on {machine.name}: modelled; micro-batch fixed, so the batch grows with the nodes"
    )
    for name in ("nodes", "ranks", "step", "exposed communication", "samples/s", "efficiency"):
        table.add_column(name, justify="right")
    for row in as_rows(rows):
        table.add_row(
            str(row["nodes"]),
            str(row["world"]),
            f"{1e3 * row['seconds']:.1f} ms",
            f"{1e3 * (row['reduce_s'] - row['hidden_s'] + row['gather_s']):.1f} ms",
            f"{row['samples_per_s']:.0f}",
            f"{row['efficiency']:.1%}",
        )
    return table


def as_rows(rows: Sequence[StepTime]) -> list[dict[str, Any]]:
    """Every number of nodes as plain data, with its efficiency against the first, which is one node."""
    assert rows[0].nodes == 1
    return [
        asdict(row)
        | {"seconds": row.seconds, "samples_per_s": row.samples_per_s, "efficiency": efficiency(row, rows[0])}
        for row in rows
    ]


def draw_scaling(rows: Sequence[StepTime], machine: Machine, path: Path) -> None:
    """Draw efficiency and samples/s over the number of nodes.

    Raises:
        ValueError: matplotlib is missing, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("--plot needs matplotlib. Install with `pip install 'aqtopo[report]'`.") from error
    figure = Figure(figsize=(8, 4), layout="constrained")
    nodes = [row.nodes for row in rows]
    left, right = figure.subplots(1, 2)
    left.semilogx(nodes, [100 * efficiency(row, rows[0]) for row in rows], "o-", base=2)
    left.set(xlabel="nodes", ylabel="efficiency [%]", ylim=(0, 105), title=f"modelled, {machine.name}")
    right.loglog(nodes, [row.samples_per_s for row in rows], "o-", label="model")
    right.loglog(nodes, [rows[0].samples_per_s * count for count in nodes], "--", label="ideal")
    right.set(xlabel="nodes", ylabel="samples/s")
    right.legend()
    if path.suffix.removeprefix(".") not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"--plot {path}: matplotlib writes no such file. Choose .png, .svg or .pdf.")
    figure.savefig(path)
