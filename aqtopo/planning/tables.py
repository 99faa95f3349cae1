"""Tables and rows of a plan and of its scaling."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from aqtopo.planning.node_types import NodeType
from aqtopo.planning.plan import Plan
from aqtopo.planning.scaling import NETWORK_SHARE, StepTime, efficiency
from aqtopo.planning.zero import step_collectives
from aqtopo.text import duration_text


def plan_tables(plan: Plan) -> Iterator[Table]:
    """Yield the tables of a plan, in reading order."""
    yield _groups(plan)
    yield _course(plan)
    yield _memory(plan)


def readable_bytes(count: int) -> str:
    """Format bytes in a binary unit with one to four digits before the point."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.2f} {units[0]}"


def _table(title: str, *columns: str) -> Table:
    """Return an empty table; labels and sources are left-aligned, numbers right-aligned."""
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name in ("group", "quantity", "part", "source") else "right")
    return table


def _groups(plan: Plan) -> Table:
    title = f"{plan.config.name}, start of epoch {plan.epoch}"
    table = _table(title, "group", "tensors", "parameters", "lr")
    for name, group in plan.groups.items():
        table.add_row(name, str(group.tensors), f"{group.parameters:,}", f"{group.lr:.6e}")
    table.add_section()
    table.add_row("all", str(plan.tensors), f"{plan.parameters:,}", "")
    return table


def _course(plan: Plan) -> Table:
    calendar, steps, config = plan.calendar, plan.calendar.steps, plan.config
    hours = "those of the store" if calendar.from_store else f"all hours: no store at {config.data.store}"
    table = Table(title="Samples and steps", show_header=False)
    table.add_row("hours", hours)
    for split, samples in calendar.tables.items():
        table.add_row(f"{split} samples", f"{len(samples):,} from {len(samples.times):,} times")
    table.add_section()
    table.add_row(
        "effective batch",
        f"{steps.train_batch:,} = {config.micro_batch} x accumulation {config.accumulation} x "
        f"{config.world_size} ranks",
    )
    table.add_row("micro-steps per epoch", f"{steps.micro_steps_per_epoch:,}")
    table.add_row("steps per epoch", f"{steps.steps_per_epoch:,}")
    table.add_row("total steps", f"{calendar.total_steps:,} in {calendar.epochs} epoch(s)")
    table.add_section()
    table.add_row(f"validations in epoch {plan.epoch}", _validations(plan))
    return table


def _validations(plan: Plan) -> str:
    due = plan.calendar.validations(plan.epoch)
    if not due:
        return f"none: an epoch has fewer than {plan.calendar.validate_every} micro-steps"
    shown = [f"after {micro_step} micro-steps, at step {step}" for micro_step, step in due.items()]
    if len(shown) > 4:
        shown = [*shown[:2], f"({len(shown) - 3} more)", shown[-1]]
    return f"{len(due)}: " + "; ".join(shown)


def _memory(plan: Plan) -> Table:
    state, activations = plan.state, plan.activations
    where = "in host memory" if state.offloaded else "shard of 1 rank"
    title = f"Memory of one rank of {plan.config.world_size} ({plan.config.deepspeed.precision})"
    table = _table(title, "quantity", "bytes", "source")
    table.add_row("parameters", readable_bytes(state.parameters), "ZeRO-2, complete on every rank")
    for name in ("gradients", "master_weights", "moments"):
        table.add_row(name.replace("_", " "), readable_bytes(getattr(state, name)), f"ZeRO-2, {where}")
    table.add_row("[bold]state on the device", f"[bold]{readable_bytes(state.device)}", "sum")
    table.add_section()
    table.add_row("reduction buffers", readable_bytes(plan.reduction), "backward pass only")
    table.add_section()
    for name, count in activations.parts.items():
        table.add_row(f"activations: {name}", readable_bytes(count), "estimate")
    table.add_row("activations", readable_bytes(activations.plain), "estimate, without checkpointing")
    table.add_row("activations", readable_bytes(activations.checkpointed), "estimate, with checkpointing")
    table.add_section()
    table.add_row("workspace", readable_bytes(plan.workspace), "estimate; backward pass only")
    table.add_section()
    checkpointing = "with" if plan.config.model.gradient_checkpointing else "without"
    table.add_row(
        "[bold]peak", f"[bold]{readable_bytes(plan.peak)}", f"estimate, {checkpointing} checkpointing"
    )
    return table


def scaling_tables(
    plan: Plan, node_type: NodeType, utilization: float, here: StepTime, rows: Sequence[StepTime]
) -> Iterator[Table]:
    """Yield the tables of the scaling model: FLOP, the step `here` at the run's nodes, and other nodes."""
    yield _flop(plan)
    yield _step(plan, node_type, utilization, here)
    yield _scaling(rows, node_type)


def _flop(plan: Plan) -> Table:
    flop = plan.flop
    title = f"FLOP of a micro-step of {plan.config.micro_batch} sample(s) on one rank"
    table = _table(title, "part", "TFLOP forward", "source")
    for name, count in {**flop.products, "attention": flop.attention}.items():
        table.add_row(name, f"{count / 1e12:.4g}", "formula")
    if flop.float32_attention:
        table.add_row("in float32", f"{flop.float32_attention / 1e12:.4g}", "formula: local bias")
    table.add_section()
    table.add_row("forward", f"{flop.forward / 1e12:.4g}", "sum")
    table.add_row("backward", f"{flop.backward / 1e12:.4g}", "2 x products + 2.5 x attention")
    return table


def _step(plan: Plan, node_type: NodeType, utilization: float, here: StepTime) -> Table:
    config = plan.config
    elements = {name: group.parameters for name, group in plan.groups.items()}
    network = node_type.ring_bandwidth(here.nodes, config.training.ranks_per_node)
    precision = config.deepspeed.precision
    title = f"A step on {here.nodes} node(s) of {node_type.name}, {here.world} ranks"
    table = _table(title, "quantity", "value", "source")
    used = plan.peak / node_type.memory
    table.add_row("memory of a rank", f"{used:.1%} of {node_type.memory / 1e9:.0f} GB", "estimate, see above")
    for collective in step_collectives(elements, config, config.accumulation):
        sent = readable_bytes(round(collective.sent(here.world)))
        calls = f"{collective.times} x {collective.messages} message(s) per step"
        table.add_row(f"{collective.name} sent by a rank", sent, f"{collective.kind} in a ring, {calls}")
    table.add_section()
    peak = f"{node_type.flops[precision] / 1e12:.4g} TFLOP/s assumed"
    if plan.flop.float32_attention:
        peak += f", in float32 of {node_type.flops['fp32'] / 1e12:.4g}"
    for name, seconds, source in (
        ("forward and backward", here.compute_s, f"{utilization:.0%} of {peak}"),
        ("reducing gradients", here.reduce_s, f"{NETWORK_SHARE:.0%} of {network / 1e9:.0f} GB/s assumed"),
        ("overlapped part", 0.0 - here.hidden_s, _overlap(plan)),
        ("gathering weights", here.gather_s, "as above"),
        ("AdamW", here.optimizer_s, f"{node_type.memory_rate / 1e12:.4g} TB/s of memory assumed"),
    ):
        table.add_row(name, f"{1e3 * seconds:.1f} ms", f"model: {source}")
    table.add_row("[bold]step", f"[bold]{1e3 * here.seconds:.1f} ms", "model: sum")
    table.add_row("samples/s", f"{here.samples_per_s:.0f}", "model")
    table.add_row(
        "whole run",
        duration_text(plan.calendar.total_steps * here.seconds),
        "model, without validation and saving",
    )
    table.add_section()
    limit = node_type.storage / here.nodes
    table.add_row(
        "read by a node",
        f"{here.loader_rate / 1e6:.1f} MB/s",
        f"uncompressed, no cache; assumed share of the file system: {limit / 1e6:.0f} MB/s",
    )
    return table


def _overlap(plan: Plan) -> str:
    """Describe the overlap of reduction and backward pass."""
    zero = plan.config.deepspeed.zero_optimization
    if not zero.overlap_comm:
        return "zero_optimization.overlap_comm is off"
    if zero.reduce_bucket_size >= plan.parameters:
        return "all gradients are in one reduce_bucket_size, sent after the backward pass"
    return "all buckets but the last"


def _scaling(rows: Sequence[StepTime], node_type: NodeType) -> Table:
    title = f"Scaling on {node_type.name}: model with a fixed micro-batch; the batch grows with the nodes"
    columns = ("nodes", "ranks", "step", "exposed communication", "samples/s", "efficiency")
    table = _table(title, *columns)
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
    """Return the steps as plain data, with the efficiency relative to the first row, one node."""
    assert rows[0].nodes == 1
    return [
        asdict(row)
        | {"seconds": row.seconds, "samples_per_s": row.samples_per_s, "loader_rate": row.loader_rate}
        | {"efficiency": efficiency(row, rows[0])}
        for row in rows
    ]
