"""Parser of amdgcn assembly text."""

import re
from dataclasses import dataclass


class EmulationError(Exception):
    """A kernel does what the hardware does not allow, or what the emulator does not know."""


@dataclass(frozen=True)
class Instruction:
    """One line of the text.

    Attributes:
        line: number of the line, from 1.
        text: the line without its comment.
        mnemonic: name without the suffix of its encoding, such as v_add_f32.
        encoding: dpp, sdwa or empty.
        operands: registers, constants and labels, destinations first.
        modifiers: values by name, such as offset: 16; flags such as offen have the value "".
    """

    line: int
    text: str
    mnemonic: str
    encoding: str
    operands: tuple[str, ...]
    modifiers: dict[str, str]

    def allow(self, *names: str) -> None:
        """Refuse modifiers other than these.

        Raises:
            EmulationError: the instruction has another modifier.
        """
        if unknown := self.modifiers.keys() - set(names):
            raise EmulationError(f"unknown modifiers {', '.join(sorted(unknown))}")

    def number(self, modifier: str) -> int:
        """Return an integer modifier; 0 if it is absent."""
        return int(self.modifiers.get(modifier, "0"), 0)

    def switches(self, modifier: str, count: int, default: int) -> list[int]:
        """Return a modifier such as op_sel:[0,1,0], or the default for every operand."""
        value = self.modifiers.get(modifier)
        return [default] * count if value is None else [int(x) for x in value.strip("[]").split(",")]


@dataclass(frozen=True)
class Argument:
    """Place of a kernel argument in the kernarg segment [bytes]; `kind` is LLVM's value_kind."""

    offset: int
    size: int
    kind: str


@dataclass(frozen=True)
class Assembly:
    """A kernel's instructions, labels (index of the next instruction), launch descriptor and arguments."""

    instructions: list[Instruction]
    labels: dict[str, int]
    descriptor: dict[str, int]
    arguments: list[Argument]


_TOKEN = re.compile(r"[^\s,\[\](]+(?:\[[^\]]*\]|\([^)]*\))?")
_FLAGS = frozenset(("offen", "clamp"))
_ARGUMENT = re.compile(r"\.offset:\s+(\d+)\s+\.size:\s+(\d+)\s+\.value_kind:\s+(\w+)")


def parse(text: str) -> Assembly:
    """Parse the text of a file with one kernel."""
    code, _, rest = text.partition(".amdhsa_kernel")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for number, line in enumerate(code.splitlines(), 1):
        content = line.split(";")[0].split("//")[0].rstrip()
        if label := re.match(r"([.\w$]+):", content):
            labels[label[1]] = len(instructions)
        elif content.startswith(("\t", " ")) and not content.lstrip().startswith("."):
            instructions.append(_instruction(content.strip(), number))
    directives = re.findall(r"\.amdhsa_(\w+)\s+(\d+)", rest)
    arguments = [Argument(int(at), int(size), kind) for at, size, kind in _ARGUMENT.findall(rest)]
    return Assembly(instructions, labels, {name: int(value) for name, value in directives}, arguments)


def _instruction(content: str, line: int) -> Instruction:
    name, *tokens = _TOKEN.findall(content)
    encoding = re.search(r"_(e32|e64|dpp|sdwa)$", name)
    mnemonic = name[: encoding.start()] if encoding else name
    modifiers = {}
    operands = []
    for token in tokens:
        key, colon, value = token.partition(":")
        if token in _FLAGS:
            modifiers[token] = ""
        elif colon and "[" not in key:
            modifiers[key] = value
        else:
            operands.append(token)
    special = encoding[1] if encoding and encoding[1] in ("dpp", "sdwa") else ""
    return Instruction(line, content, mnemonic, special, tuple(operands), modifiers)
