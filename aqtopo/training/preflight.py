"""The preflight: what every rank compares with the others before the first weight is made.

Also `aqtopo doctor`. Each rank finds out what it has; one exchange of texts tells everybody everything; every
rank comes to the same verdict. What touches a disk is done once a node or once a run.
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
from aqtopo.data.stage import NodeCopy
from aqtopo.distributed.heartbeat_store import abridged
from aqtopo.model import Terrain
from aqtopo.model.blocks import kernel_head_widths
from aqtopo.model.wind import sector_order_table
from aqtopo.training import distributed
from aqtopo.training.kernel_check import kernel_problem
from aqtopo.training.prepare import Prepared

CLOCK_TOLERANCE_S = 10.0
"""Clocks further apart than this make logs and file times misleading."""

SAVED_BYTES_PER_PARAMETER = 12 + 4 + 4 + 12
"""Master weights and moments, the module, the weights for everyone; and again by name, when resuming."""

CHECKPOINTS_WITH_ROOM = 2
"""A new state is complete before an old one is removed."""


@dataclass(frozen=True)
class Finding:
    """What one rank has.

    Attributes:
        host: its node.
        facts: what must be equal on all ranks, by name.
        problems: what is wrong on this rank alone.
        clock: its time [s since 1970], read when all ranks had just met.
    """

    host: str
    facts: dict[str, str]
    problems: list[str]
    clock: float


@dataclass(frozen=True)
class Checkup:
    """The verdict, the same on all ranks.

    Attributes:
        facts: what most ranks have.
        problems: everything that has to be put right; empty if nothing.
        seconds: how long it took.
    """

    facts: dict[str, str]
    problems: list[str]
    seconds: float

    def demand_health(self, in_full: bool) -> None:
        """Raise if there are problems.

        Args:
            in_full: spell all of them out, which one rank does for all.

        Raises:
            ValueError: on all ranks.
        """
        if not self.problems:
            return
        what = "the ranks cannot train together"
        if in_full or len(self.problems) == 1:
            raise ValueError(f"{what}:\n" + "\n".join(f"  {problem}" for problem in self.problems))
        others = len(self.problems) - 1
        raise ValueError(f"{what}: {self.problems[0]}; and {others} more, which rank 0 names")


def check_up(prepared: Prepared, device: torch.device, *, stage_too: bool = False) -> Checkup:
    """Compare all ranks; every rank must call it.

    Args:
        prepared: what this rank knows of the run.
        device: where it will train.
        stage_too: whether every node has room for its copy of the data; a run sees that when it copies.
    """
    began, launch = time.monotonic(), prepared.launch
    problems = [*_kernels(prepared, device), *check_reduction(launch.rank, launch.size, device)]
    if launch.local_rank == 0:
        problems += _folder_problems(prepared.run_dir)
        problems += _stage_problems(prepared) if stage_too else []
    if launch.is_main:
        problems += _space_problems(prepared)
    distributed.barrier()
    common, problems = compare(Finding(socket.gethostname(), _facts(prepared, device), problems, time.time()))
    return Checkup(common, problems, time.monotonic() - began)


def compare(own: Finding) -> tuple[dict[str, str], list[str]]:
    """What most ranks have, and every problem, by the findings of all ranks; every rank must call it."""
    findings = [Finding(**json.loads(text)) for text in distributed.gather_texts(json.dumps(asdict(own)))]
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
        "saved state to go on from": str(prepared.source),
    }


def _driver(device: torch.device) -> str:
    """The GPU driver's version, as the kernel module says it; ROCm's file, then NVIDIA's."""
    if device.type != "cuda":
        return "none"
    for path in (Path("/sys/module/amdgpu/version"), Path("/proc/driver/nvidia/version")):
        if path.exists():
            return path.read_text().splitlines()[0]
    return f"runtime {torch.version.hip or torch.version.cuda}"


def _kernels(prepared: Prepared, device: torch.device) -> list[str]:
    """Compile and check the kernels: first one rank of each node, then the others, who find them compiled."""
    model = prepared.config.model
    problems: list[str | None] = []
    first = prepared.launch.local_rank == 0
    for turn in (True, False):
        if first is turn:
            problems = [kernel_problem(model.heads, width, device) for width in kernel_head_widths(model)]
        distributed.barrier()
    return [problem for problem in problems if problem]


def check_reduction(rank: int, size: int, device: torch.device) -> list[str]:
    """Whether a sum over all ranks is right; every rank must call it."""
    found = int(distributed.total(torch.tensor([rank + 1], device=device)))
    expected = size * (size + 1) // 2
    return [] if found == expected else [f"the sum over all ranks is {found} and should be {expected}"]


def _folder_problems(run_dir: Path) -> list[str]:
    """Whether files can be written and renamed where the run's will be; leaves nothing."""
    folder = _existing(run_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=".aqtopo-doctor-", dir=folder) as trial:
            source, target = Path(trial) / "written", Path(trial) / "renamed"
            source.write_text("committed")
            source.rename(target)
            if source.exists() or target.read_text() != "committed":
                return [
                    f"{folder}: a renamed file is not where it should be. Choose another training.run_dir."
                ]
    except OSError as error:
        return [
            f"{folder}: a file cannot be written and renamed there ({error.strerror}), and saved states are "
            "committed by renaming. Choose another training.run_dir."
        ]
    return []


def _space_problems(prepared: Prepared) -> list[str]:
    needed = CHECKPOINTS_WITH_ROOM * SAVED_BYTES_PER_PARAMETER * prepared.parameters
    folder = _existing(prepared.run_dir)
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return [
        f"{folder} has {free / 2**30:.1f} GiB free, and {CHECKPOINTS_WITH_ROOM} saved states of the run need "
        f"{needed / 2**30:.1f} GiB. Make room, or choose another training.run_dir."
    ]


def _stage_problems(prepared: Prepared) -> list[str]:
    """What keeps this node from having a copy of the data, where `data.stage` asks for one."""
    if prepared.config.data.stage is None:
        return []
    try:
        NodeCopy(prepared.store, prepared.config).demand_room()
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def _problems(findings: Sequence[Finding], common: dict[str, str]) -> list[str]:
    """Every problem of ranks, every difference between them, and every clock that is off; each once."""
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
    return [*problems, *([f"the clock is off the other ranks': {abridged(off, 8)}"] if off else [])]


def _short(value: str) -> str:
    """A digest's beginning; anything else as it is."""
    return value[:12] if len(value) == 64 and set(value) <= set("0123456789abcdef") else value
