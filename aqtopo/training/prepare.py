"""Start of a run: the state to resume, checks before its processes communicate, claim of its directory.

A claimed directory belongs to one configuration.
"""

import json
import os
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from aqtopo.checkpoint.changes import Allowed, check_changes, config_changes
from aqtopo.checkpoint.files import exclusive_lock_on_all_ranks, write_durably
from aqtopo.checkpoint.manifest import MANIFEST_FILE, package_versions, read_manifest, source_commit
from aqtopo.checkpoint.tags import (
    CHECKPOINTS,
    check_pointer,
    find_tag,
    last_tag,
    list_tags,
    remove_stale,
    repair_pointer,
)
from aqtopo.checkpoint.universal import LATEST, folder_in
from aqtopo.config import RunConfig
from aqtopo.data.check import check_store
from aqtopo.data.loader import EvaluationLoader, TrainingLoader
from aqtopo.data.samples import StepPlan, sample_table
from aqtopo.data.store import Store, open_run_store
from aqtopo.distributed.deadlines import STACKS
from aqtopo.distributed.launch import Launch
from aqtopo.distributed.process_group import RankGroup, raise_problems_on_all_ranks, refusals_on_all_ranks
from aqtopo.model import Terrain, build_model
from aqtopo.refusal import RefusedError, raise_problems
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.run_file import CONFIG_FILE, RUN_FILE, RunFile, read_run_config
from aqtopo.safe_files import UNFINISHED, check_writable, open_plain
from aqtopo.training.engine import check_supported, group_parameters
from aqtopo.training.initial_weights import initial_weights
from aqtopo.training.schedule import Schedule

AUTO, NEVER = "auto", "never"

LOCK_FILE = ".lock"

LOCK_TIMEOUT_S = 120.0
"""Time that a batch job waits for the lock [s]; its own previous start may still hold it."""


@dataclass(frozen=True)
class ResumeOptions:
    """State to resume, and allowed differences to it.

    Attributes:
        source: `auto`, `never`, a tag of the run directory, or the path of a saved state.
        allowed: allowed differences.
    """

    source: str = AUTO
    allowed: Allowed = field(default_factory=Allowed)


@dataclass(frozen=True)
class Prepared:
    """A checked run: its configuration, data, steps, learning rates and the state to resume."""

    config: RunConfig
    launch: Launch
    run_dir: Path
    store: Store
    plan: StepPlan
    schedule: Schedule
    options: ResumeOptions
    source: Path | None
    """Folder of the state to resume; None for a fresh start."""
    parameters: int
    """Number of weights."""

    @property
    def continues(self) -> bool:
        """True if the run resumes a state of its own run directory."""
        return self.source is not None and is_own(self.source, self.run_dir)

    def loaders(self) -> tuple[TrainingLoader, EvaluationLoader]:
        """Return this rank's loaders of training and validation; with workers they take shared memory.

        Raises:
            ValueError: there is too little shared memory.
        """
        place = self.launch.rank, self.launch.size
        return (
            TrainingLoader(self.store, self.config, *place),
            EvaluationLoader(self.store, self.config, "validation", *place, self.config.micro_batch),
        )


def prepare(config: RunConfig, launch: Launch, options: ResumeOptions) -> Prepared:
    """Open the data, plan the steps and check the run; writes nothing.

    Raises:
        ValueError: the configuration, data, launch or run directory is invalid.
        RefusedError: the saved state belongs to a different run.
    """
    nodes, ranks_per_node = config.training.nodes, config.training.ranks_per_node
    run_dir = Path(config.training.run_dir)
    source = find_source(run_dir, options.source)
    # Any number of ranks can resume a run: the configured world size fixes the samples of a step.
    if source is None and launch.size != config.world_size:
        raise ValueError(
            f"{launch.size} process(es) were started, but training.nodes x training.ranks_per_node = "
            f"{nodes} x {ranks_per_node} = {config.world_size}. Start that many, for example "
            f"`{launch.example(nodes, ranks_per_node)}`, or change training.nodes, training.ranks_per_node. "
            f"{run_dir} has no saved state, which any number of processes could resume."
        )
    _check_claim(source, run_dir, config, options)
    store = open_run_store(config)
    check_store(store, config)
    check_supported(config)
    with torch.device("meta"):  # names and shapes suffice to check groups and terrain
        model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    elements = {name: parameter.numel() for name, parameter in model.named_parameters()}
    group_parameters(elements, config)
    if source is None and config.training.initial_weights is not None:
        initial_weights(config, model)
    plan = StepPlan.from_config(config, len(sample_table(config, store.times, "train")))
    if not plan.validation_steps(config.training.validate_every):
        raise ValueError(
            f"training.validate_every = {config.training.validate_every} micro-steps, but an epoch has only "
            f"{plan.micro_steps_per_epoch}: the run would never be validated. Lower training.validate_every."
        )
    sample_table(config, store.times, "validation")
    schedule = Schedule.from_config(config, plan.steps_per_epoch)
    if source is not None:
        check_source(source, config, store, options.allowed)
    return Prepared(config, launch, run_dir, store, plan, schedule, options, source, sum(elements.values()))


def prepare_again(prepared: Prepared, ranks: RankGroup) -> Prepared:
    """Repeat the checks that depend on the run directory, after it has been locked.

    Raises:
        RefusedError: on all ranks: another run has claimed the directory, or ranks see different states.
    """
    what = f"{prepared.run_dir} has changed since this run began"
    with refusals_on_all_ranks(ranks, what, (RefusedError, ValueError)):
        found = find_source(prepared.run_dir, prepared.options.source)
        _check_claim(found, prepared.run_dir, prepared.config, prepared.options)
    seen = sorted(set(ranks.gather_texts(str(found))))
    raise_problems_on_all_ranks(
        ranks, what, [f"ranks see different states: {', '.join(seen)}"] if seen[1:] else []
    )
    if found == prepared.source:
        return prepared
    return prepare(prepared.config, prepared.launch, prepared.options)


def find_source(run_dir: Path, source: str) -> Path | None:
    """Return the folder of the state to resume; None for a fresh start.

    Raises:
        ValueError: the state does not exist.
    """
    if source == NEVER:
        return None
    if source == AUTO:
        check_pointer(run_dir)
        tag = last_tag(run_dir)
        return None if tag is None else tag.folder(run_dir)
    path = Path(source)
    if (path / LATEST).is_file():
        return folder_in(path)
    if (path / MANIFEST_FILE).is_file():
        return path
    if path.is_dir():
        raise ValueError(
            f"--resume {source}: the folder holds no saved state ({MANIFEST_FILE} is missing). "
            "Name a tag of the run directory, or the folder of a tag or a universal checkpoint. To begin "
            "with the weights of a run or of an exported model, set training.initial_weights."
        )
    if path.name != source:
        raise ValueError(
            f"--resume {source}: there is no such folder. Correct the path of the saved state, or name a tag "
            f"of {run_dir}; `aqtopo checkpoint ls {run_dir}` lists them."
        )
    return find_tag(run_dir, source).folder(run_dir)


def is_own(source: Path, run_dir: Path) -> bool:
    """Return True if a saved state belongs to the run directory."""
    return (run_dir / CHECKPOINTS).resolve() in source.resolve().parents


def check_source(source: Path, config: RunConfig, store: Store, allowed: Allowed) -> None:
    """Compare the configuration and data with those of a saved state; reads its manifest only.

    Raises:
        RefusedError: they differ, and the difference is not allowed.
    """
    run = read_manifest(source).run
    check_changes(config_changes(run.config, json.loads(config.to_json())), allowed)
    if run.data_digest not in (None, store.digest) and not allowed.allows_change("data.store"):
        raise_problems(
            "the data are not those of the saved run",
            [f"{config.data.store}: digest {store.digest[:12]}, saved {str(run.data_digest)[:12]}"],
            "Restore the store, or allow the change: --allow-change data.store",
        )


def _check_claim(source: Path | None, run_dir: Path, config: RunConfig, options: ResumeOptions) -> None:
    """Check that the run may claim the directory, unless it continues a state of this directory."""
    if source is None or not is_own(source, run_dir):
        check_run_directory(run_dir, config, start_over=options.source != NEVER)


def check_run_directory(run_dir: Path, config: RunConfig, start_over: bool = False) -> None:
    """Check that a fresh run may use a directory; leaves no files.

    `start_over` accepts a directory that the same configuration claimed, if it has no saved state.

    Raises:
        ValueError: the directory is in use, is not a directory or is not writable.
    """
    if (run_dir / CONFIG_FILE).exists():
        same = read_run_config(run_dir).digest == config.digest
        if same and start_over and not list_tags(run_dir):
            return
        whose = "the same configuration" if same else "another configuration"
        raise ValueError(
            f"the run directory {run_dir} is already used by {whose}. Runs are never overwritten. "
            "Choose another with --set training.run_dir=DIR, or move the old run away."
        )
    names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    if any(not name.endswith(UNFINISHED) for name in names - {LOCK_FILE, STACKS}):
        raise ValueError(
            f"the run directory {run_dir} is not empty and holds no run ({CONFIG_FILE} is missing). "
            "Choose another with --set training.run_dir=DIR."
        )
    for folder in (run_dir, run_dir / CHECKPOINTS, run_dir / STACKS):
        if folder.is_symlink() and not folder.is_dir():
            raise ValueError(f"{folder} is a link that leads to no folder. Correct the link, or remove it.")
    ancestor = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    try:
        check_writable(ancestor)
    except OSError as error:
        raise ValueError(
            f"the run directory {run_dir} cannot be written ({error.strerror}: {ancestor}). "
            "Choose another with --set training.run_dir=DIR."
        ) from error


def lock_run_directory(
    run_dir: Path, ranks: RankGroup, timeout_s: float = 0.0
) -> AbstractContextManager[None]:
    """Lock a run directory while a run uses it.

    Waits at most `timeout_s` [s] for another run to end, with a message on stderr.

    Raises:
        BusyError: on all ranks: another run uses the directory.
    """
    if ranks.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LOCK_FILE).touch()
    return exclusive_lock_on_all_ranks(
        run_dir / LOCK_FILE,
        ranks,
        f"another run uses {run_dir}",
        "Wait for its end, stop it, or choose another directory with --set training.run_dir=DIR.",
        timeout_s,
    )


def claim_run_directory(run_dir: Path, config: RunConfig, launch: Launch, device: torch.device) -> None:
    """Write config.json and run.json, which records versions and machine, to a new run directory."""
    facts = RunFile(
        name=config.name,
        config_digest=config.digest,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        world_size=launch.size,
        launcher=launch.launcher,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        host_cores=os.cpu_count(),
        threads_per_rank=torch.get_num_threads(),
        platform=platform.platform(),
        python=platform.python_version(),
        versions=package_versions(),
        commit=source_commit(),
        folder=str(Path.cwd()),
    )
    # Write the configuration first: it is the claim if the process is killed before the second write.
    write_durably(run_dir / CONFIG_FILE, config.to_json() + "\n")
    write_durably(run_dir / RUN_FILE, facts.model_dump_json(indent=2) + "\n")


def reclaim_run_directory(run_dir: Path, config: RunConfig) -> None:
    """Remove unfinished files of killed processes and update config.json."""
    remove_stale(run_dir)
    repair_pointer(run_dir)
    truncate_metrics(run_dir / METRICS_FILE)
    if read_run_config(run_dir).digest != config.digest:
        write_durably(run_dir / CONFIG_FILE, config.to_json() + "\n")


def truncate_metrics(path: Path) -> None:
    """Remove an incomplete last line of a killed process.

    Raises:
        ValueError: the path is a link or no plain file.
    """
    if not os.path.lexists(path):
        return
    with open_plain(path, "rb+") as file:
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
