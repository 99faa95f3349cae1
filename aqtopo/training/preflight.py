"""Preflight: checks and comparison of all ranks before the model is built; also `aqtopo doctor`.

One all-gather exchanges the findings, so all ranks have the same result. Disk checks run once per node.
"""

import hashlib
import json
import platform
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from aqtopo.checkpoint.manifest import package_versions
from aqtopo.distributed import process_group
from aqtopo.model import Terrain
from aqtopo.model.transformer_block import kernel_head_widths
from aqtopo.model.wind_order import sector_order_table
from aqtopo.run_directory.monitors import login_problems
from aqtopo.text import abridged
from aqtopo.training.engine import optimizer_problem
from aqtopo.training.kernel_check import kernel_problem
from aqtopo.training.prepare import Prepared
from aqtopo.training.staging import check_stage

CLOCK_TOLERANCE_S = 10.0
"""Largest accepted difference of a clock from the median [s]; logs are compared by time."""

SAVED_BYTES_PER_PARAMETER = 12 + 4 + 4 + 12
"""Bytes of master weights and moments, module, weights file, and the universal checkpoint."""

SAVED_STATES = 2
"""Number of saved states on disk at a time: an old one is removed after a new one is complete."""


@dataclass(frozen=True)
class RankFindings:
    """Findings of one rank.

    Attributes:
        host: its node.
        facts: values that must be equal on all ranks.
        problems: problems of this rank alone.
        clock: its time after a barrier [s since 1970].
    """

    host: str
    facts: dict[str, str]
    problems: list[str]
    clock: float


@dataclass(frozen=True)
class Checkup:
    """Result of the preflight, equal on all ranks.

    Attributes:
        facts: the most common values.
        problems: all problems.
        seconds: duration.
    """

    facts: dict[str, str]
    problems: list[str]
    seconds: float

    def raise_problems(self, in_full: bool) -> None:
        """Raise if there are problems; only one rank should list all of them (`in_full`).

        Raises:
            ValueError: on all ranks: there are problems.
        """
        if not self.problems:
            return
        what = "the ranks cannot train together"
        if in_full or len(self.problems) == 1:
            raise ValueError(f"{what}:\n" + "\n".join(f"  {problem}" for problem in self.problems))
        others = len(self.problems) - 1
        raise ValueError(f"{what}: {self.problems[0]}; and {others} more, which rank 0 lists")


def check_up(prepared: Prepared, device: torch.device, *, stage_too: bool = False) -> Checkup:
    """Check and compare all ranks; a collective.

    `stage_too` also checks the room for each node's copy of the data; a run checks it when it copies.
    """
    began, launch = time.monotonic(), prepared.launch
    problems = [*_kernels(prepared, device), *check_reduction(launch.rank, launch.size, device)]
    problems += _shared_memory_problems(prepared)
    if launch.local_rank == 0:
        problems += _folder_problems(prepared.run_dir)
        problems += _stage_problems(prepared) if stage_too else []
    if launch.is_main:
        problems += [*_space_problems(prepared), *login_problems(prepared.config)]
    process_group.barrier()
    common, problems = compare_ranks(
        RankFindings(socket.gethostname(), _facts(prepared, device), problems, time.time())
    )
    return Checkup(common, problems, time.monotonic() - began)


def compare_ranks(own: RankFindings) -> tuple[dict[str, str], list[str]]:
    """Return the most common facts and all problems of all ranks; a collective."""
    texts = process_group.gather_texts(json.dumps(asdict(own)))
    findings = [RankFindings(**json.loads(text)) for text in texts]
    common = {name: Counter(f.facts[name] for f in findings).most_common(1)[0][0] for name in own.facts}
    return common, _problems(findings, common)


def _facts(prepared: Prepared, device: torch.device) -> dict[str, str]:
    config, store = prepared.config, prepared.store
    versions = {f"version of {name}": str(version) for name, version in package_versions().items()}
    if config.model.wind_order:
        terrain = Terrain(store.static["elevation"], store.lat, store.lon)
        table = sector_order_table(
            config.region_patches, config.model.sectors, latitude_ascending=terrain.latitude_ascending
        )
        wind = hashlib.sha256(table.tobytes()).hexdigest()
    else:
        wind = "rows"
    return versions | {
        "version of python": platform.python_version(),
        "driver": _driver(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "configuration": config.digest,
        "data": store.digest,
        "wind order": wind,
        "saved state to resume": str(prepared.source),
    }


def _driver(device: torch.device) -> str:
    """Return the version of the GPU driver's kernel module (ROCm or NVIDIA)."""
    if device.type != "cuda":
        return "none"
    for path in (Path("/sys/module/amdgpu/version"), Path("/proc/driver/nvidia/version")):
        if path.exists():
            return path.read_text(encoding="utf-8").splitlines()[0]
    return f"runtime {torch.version.hip or torch.version.cuda}"


def _kernels(prepared: Prepared, device: torch.device) -> list[str]:
    """Check kernels and optimizer on one rank of each node, which compiles them, then on the others."""
    model = prepared.config.model
    problems: list[str | None] = []
    first = prepared.launch.local_rank == 0
    for turn in (True, False):
        if first is turn:
            problems = [kernel_problem(model.heads, width, device) for width in kernel_head_widths(model)]
            problems.append(optimizer_problem(prepared.config.optimizer.implementation))
        process_group.barrier()
    return [problem for problem in problems if problem]


def check_reduction(rank: int, size: int, device: torch.device) -> list[str]:
    """Check an all-reduce; a collective."""
    found = int(process_group.total(torch.tensor([rank + 1], device=device)))
    expected = size * (size + 1) // 2
    return [] if found == expected else [f"an all-reduce over all ranks gives {found} instead of {expected}"]


def _folder_problems(run_dir: Path) -> list[str]:
    """Check that files can be written and renamed in the run directory; leaves no files."""
    folder = _existing(run_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=".aqtopo-doctor-", dir=folder) as trial:
            source, target = Path(trial) / "written", Path(trial) / "renamed"
            source.write_text("committed", encoding="utf-8")
            source.rename(target)
            if source.exists() or target.read_text(encoding="utf-8") != "committed":
                return [f"{folder}: a renamed file is missing. Choose another training.run_dir."]
    except OSError as error:
        return [
            f"{folder}: a file cannot be written and renamed ({error.strerror}); saved states need an atomic "
            "rename. Choose another training.run_dir."
        ]
    return []


def _space_problems(prepared: Prepared) -> list[str]:
    needed = SAVED_STATES * SAVED_BYTES_PER_PARAMETER * prepared.parameters
    folder = _existing(prepared.run_dir)
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return [
        f"{folder} has {free / 2**30:.1f} GiB free, but {SAVED_STATES} saved states need "
        f"{needed / 2**30:.1f} GiB. Make room, or choose another training.run_dir."
    ]


def _stage_problems(prepared: Prepared) -> list[str]:
    """Check the room for this node's copy of the data, if `data.stage` is set."""
    if prepared.config.data.stage is None:
        return []
    try:
        check_stage(prepared.store, prepared.config)
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def _shared_memory_problems(prepared: Prepared) -> list[str]:
    """Allocate the shared memory of the loaders, on all ranks of a node at the same time; a collective."""
    loaders, problems = None, []
    try:
        loaders = prepared.loaders()
    except ValueError as error:
        problems = [str(error)]
    process_group.barrier()
    del loaders
    return problems


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def _problems(findings: Sequence[RankFindings], common: dict[str, str]) -> list[str]:
    """Return all problems of ranks, differences between ranks and deviating clocks, each once."""
    having: dict[str, list[str]] = {}
    for rank, finding in enumerate(findings):
        for problem in finding.problems:
            having.setdefault(problem, []).append(f"rank {rank} on {finding.host}")
    problems = [f"{abridged(ranks, 8)}: {problem}" for problem, ranks in having.items()]
    for name, usual in common.items():
        others = [
            f"rank {rank} on {finding.host} has {_short(finding.facts[name])}"
            for rank, finding in enumerate(findings)
            if finding.facts[name] != usual
        ]
        if others:
            rest = len(findings) - len(others)
            problems.append(f"{name}: {abridged(others, 8)}; {rest} rank(s) have {_short(usual)}")
    clocks = sorted(finding.clock for finding in findings)
    median = clocks[len(clocks) // 2]
    off = [
        f"rank {rank} on {finding.host} {finding.clock - median:+.0f} s"
        for rank, finding in enumerate(findings)
        if abs(finding.clock - median) > CLOCK_TOLERANCE_S
    ]
    return [*problems, *([f"clocks differ from the median: {abridged(off, 8)}"] if off else [])]


def _short(value: str) -> str:
    """Abbreviate a digest; return any other text unchanged."""
    return value[:12] if len(value) == 64 and set(value) <= set("0123456789abcdef") else value
