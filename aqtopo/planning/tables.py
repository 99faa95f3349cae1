"""The plan for people: what is counted, what is estimated, and on what assumption."""

from collections.abc import Iterator

from rich.table import Table

from aqtopo.planning.plan import Plan


def plan_tables(plan: Plan) -> Iterator[Table]:
    """The plan's tables, in reading order."""
    yield _groups(plan)
    yield _course(plan)
    yield _memory(plan)


def readable_bytes(count: int) -> str:
    """A number of bytes in the binary unit in which it has one to four digits before the point."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.2f} {units[0]}"


def _groups(plan: Plan) -> Table:
    table = Table(title=f"{plan.config.name}, start of epoch {plan.epoch}")
    table.add_column("group")
    for name in ("tensors", "parameters", "lr"):
        table.add_column(name, justify="right")
    for name, group in plan.groups.items():
        table.add_row(name, str(group.tensors), f"{group.parameters:,}", f"{group.lr:.6e}")
    table.add_section()
    table.add_row("all", str(plan.tensors), f"{plan.parameters:,}", "")
    return table


def _course(plan: Plan) -> Table:
    calendar, steps, config = plan.calendar, plan.calendar.steps, plan.config
    hours = (
        "those in the store"
        if calendar.from_store
        else f"no store at {config.data.store}: every hour assumed"
    )
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
    table.add_row("micro-steps an epoch", f"{steps.micro_steps_per_epoch:,}")
    table.add_row("steps an epoch", f"{steps.steps_per_epoch:,}")
    table.add_row("steps in all", f"{calendar.total_steps:,} in {calendar.epochs} epochs")
    table.add_section()
    table.add_row(f"validations in epoch {plan.epoch}", _validations(plan))
    return table


def _validations(plan: Plan) -> str:
    due = plan.calendar.validations(plan.epoch)
    if not due:
        return f"none: an epoch has fewer than {plan.calendar.validate_every} micro-steps"
    shown = [f"{micro_step} micro-steps in, at step {step}" for micro_step, step in due.items()]
    if len(shown) > 4:
        shown = [*shown[:2], f"({len(shown) - 3} more)", shown[-1]]
    return f"{len(due)}: " + "; ".join(shown)


def _memory(plan: Plan) -> Table:
    state, activations = plan.state, plan.activations
    where = "in host memory" if state.offloaded else "1 rank's share"
    table = Table(title=f"Memory of one rank of {plan.config.world_size} ({plan.config.deepspeed.precision})")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    table.add_column("how known")
    table.add_row("parameters", readable_bytes(state.parameters), "ZeRO-2, whole on every rank")
    for name in ("gradients", "master_weights", "moments"):
        table.add_row(name.replace("_", " "), readable_bytes(getattr(state, name)), f"ZeRO-2, {where}")
    table.add_row("[bold]state on the device", f"[bold]{readable_bytes(state.device)}", "sum")
    table.add_section()
    table.add_row("reduction buffers", readable_bytes(plan.reduction), "reduce_bucket_size; in backward only")
    table.add_section()
    for name, count in activations.parts.items():
        table.add_row(f"activations: {name}", readable_bytes(count), "estimate")
    table.add_row("activations", readable_bytes(activations.plain), "estimate, without checkpointing")
    table.add_row("activations", readable_bytes(activations.checkpointed), "estimate, with checkpointing")
    table.add_section()
    table.add_row("workspace", readable_bytes(plan.workspace), "estimate; in backward only")
    table.add_section()
    checkpointing = "with" if plan.config.model.gradient_checkpointing else "without"
    table.add_row(
        "[bold]peak", f"[bold]{readable_bytes(plan.peak)}", f"estimate, {checkpointing} checkpointing"
    )
    return table
