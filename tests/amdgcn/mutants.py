"""Faults put into the kernels' text, as the test of the emulator's checks: `make mutants`.

A mutant is a kernel with one executed line changed. It is noticed if the emulator refuses it, or if it writes
other values than the kernel. The faults that no check can notice are redundant lines: a wait for a load that
an earlier wait has covered, a mask that removes nothing at the tested size.
"""

# ruff: noqa: T201 - this is a command

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch

from tests.amdgcn.assembly import EmulationError
from tests.amdgcn.device import Launch, emulating
from tests.kernels.launchers import attend, move

TOKENS, WIDTH = 95, 96
CASES = [("gfx90a", torch.float32), ("gfx90a", torch.bfloat16), ("gfx942", torch.bfloat16)]
Change = Callable[[str], str]


def _plus_one(number: str) -> str:
    return str(int(number, 0) + 1)


def _shorter(nop: str) -> str:
    states = int(nop.split()[1])
    return f"s_nop {states - 1}" if states else ""


_VECTOR, _SCALAR = r"\tv_(?!mfma)", r"\ts_(?!waitcnt|barrier|nop|endpgm|c?branch|setprio|load|sched)"
_LOAD = r"\t(buffer_load|global_load|ds_read|ds_bpermute|s_load)"
_STORE = r"\t(buffer_store|global_store|ds_write)"
_CONSTANT = r"(?<=, )(0x[0-9a-f]+|\d+)(?=,|$)"
_ALL: tuple[str, Change] = (".+", lambda line: "")

KINDS: dict[str, tuple[str, str, Change]] = {
    "wait dropped": (r"\ts_waitcnt", *_ALL),
    "wait for one less": (r"\ts_waitcnt", r"(?<=cnt\()\d+", _plus_one),
    "barrier dropped": (r"\ts_barrier", *_ALL),
    "s_nop one shorter": (r"\ts_nop", r"s_nop \d+", _shorter),
    "LDS offset": (r"\tds_(read|write)", r"(?<=offset:)\d+|(?<=offset[01]:)\d+", lambda x: str(int(x) ^ 4)),
    "matrix operands swapped": (r"\tv_mfma", r"\S+, \S+(?=, \S+$)", lambda x: ", ".join(x.split(", ")[::-1])),
    "matrix dropped": (r"\tv_mfma", *_ALL),
    "load dropped": (_LOAD, *_ALL),
    "store dropped": (_STORE, *_ALL),
    "vector dropped": (_VECTOR, *_ALL),
    "vector source": (rf"{_VECTOR}\w+ v\d+, v\d+", r"(?<=, v)\d+", lambda x: str(int(x) ^ 1)),
    "scalar dropped": (_SCALAR, *_ALL),
    "constant plus 1": (rf"({_VECTOR}|{_SCALAR}).*{_CONSTANT}", _CONSTANT, _plus_one),
}
"""By kind of fault: pattern of the lines, part that is changed, and its change."""


@dataclass(frozen=True)
class Mutant:
    """A launch with another line at one place of its text."""

    launch: Launch
    kind: str
    line: int
    changed: str

    def __str__(self) -> str:
        line = self.launch.text.split("\n")[self.line - 1].strip()
        return f"{self.kind}: {self.launch.architecture} {self.launch.function}, line {self.line}: {line}"

    @property
    def text(self) -> str:
        """The changed text."""
        lines = self.launch.text.split("\n")
        return "\n".join([*lines[: self.line - 1], self.changed, *lines[self.line :]])

    def verdict(self) -> str:
        """Return "refused", "other values" or "unnoticed"."""
        expected = baseline(self.launch)
        mutated = replace(self.launch.copied(), text=self.text)
        try:
            mutated.execute(limit=2 * expected.most_visits)
        except EmulationError:
            return "refused"
        same = all(map(torch.equal, mutated.contents(), expected.contents))
        return "unnoticed" if same else "other values"


@dataclass(frozen=True)
class Baseline:
    """What a launch without a fault executes and leaves in memory."""

    lines: list[int]
    contents: list[torch.Tensor]
    most_visits: int


@cache
def baseline(launch: Launch) -> Baseline:
    """Execute a launch on copies of its tensors."""
    copied = launch.copied()
    done = copied.execute()
    operations = zip(done.program.operations, done.visits, strict=True)
    lines = [operation.instruction.line for operation, visits in operations if visits]
    return Baseline(lines, copied.contents(), max(done.visits))


@cache
def recorded(architecture: str, dtype: torch.dtype) -> list[Launch]:
    """Return the launches of forward and backward with bias and order, and of the gather."""
    generator = torch.Generator().manual_seed(0)
    dout, q, k, v = torch.randn((4, 1, 1, TOKENS, WIDTH), generator=generator).to(dtype)
    elevation = 5000 * torch.rand((1, TOKENS), generator=generator)
    order = torch.randperm(TOKENS, generator=generator)[None]
    with emulating(architecture, record=True) as device:
        attend(dout, q, k, v, elevation, torch.ones(1), order, WIDTH**-0.5)
        move(q[0], order, v[0])
    return device.launches


def mutants(kind: str, seed: int) -> list[Mutant]:
    """Return the mutants of a kind in a seeded order: executed lines of all cases and kernels."""
    pattern, part, change = KINDS[kind]
    found = []
    for launch in (launch for case in CASES for launch in recorded(*case)):
        lines = launch.text.split("\n")
        for number in baseline(launch).lines:
            line = lines[number - 1]
            changed = re.sub(part, lambda match: change(match[0]), line, count=1)
            if re.match(pattern, line) and changed != line:
                found.append(Mutant(launch, kind, number, changed))
    random.Random(seed).shuffle(found)
    return found


def first_verdict(kind: str, seed: int) -> tuple[str, str]:
    """Return the first mutant of a kind, described, and its verdict."""
    first = mutants(kind, seed)[0]
    return str(first), first.verdict()


def main() -> None:
    """Print the share of mutants noticed by kind, and those that were not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, unnoticed = time.process_time(), []
    totals: Counter[str] = Counter()
    print(f"{'kind':24} mutants  refused  other values  unnoticed")
    for index, kind in enumerate(KINDS):
        count = (options.count + index) // len(KINDS)
        chosen = mutants(kind, options.seed)[:count]
        verdicts = Counter()
        for mutant in chosen:
            verdict = mutant.verdict()
            verdicts[verdict] += 1
            if verdict == "unnoticed":
                unnoticed.append(mutant)
        totals += verdicts
        print(_row(kind, verdicts), flush=True)
    print(_row("all", totals))
    share = 1 - totals["unnoticed"] / totals.total()
    print(f"{share:.1%} noticed, {time.process_time() - began:.0f} s of processor time. Unnoticed:")
    print("\n".join(map(str, unnoticed)))


def _row(kind: str, verdicts: Counter[str]) -> str:
    cells = (verdicts.total(), verdicts["refused"], verdicts["other values"], verdicts["unnoticed"])
    return "{:24} {:7} {:8} {:13} {:10}".format(kind, *cells)


if __name__ == "__main__":
    main()
