"""What checkpoints and scores need from the processes of a run: who takes part, waiting, telling each other.

The collectives come from above (`aqtopo.training.distributed`); commands that run alone use `ALONE`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aqtopo.refusal import RefusedError, refuse

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


class Ranks(Protocol):
    """The processes that save, restore or score together."""

    @property
    def rank(self) -> int:
        """This process."""

    @property
    def size(self) -> int:
        """How many there are."""

    def barrier(self) -> None:
        """Wait for all."""

    def gather_texts(self, text: str) -> list[str]:
        """Every rank's text, on every rank, in rank order."""

    def gather_parts(self, part: "Tensor") -> "Tensor":
        """Every rank's equally long part, one after the other, on every rank."""

    def add_up(self, values: "Tensor") -> "Tensor":
        """The sum of every rank's values, element by element, on every rank."""


@dataclass(frozen=True)
class Alone:
    """A single process without a process group."""

    rank: int = 0
    size: int = 1

    def barrier(self) -> None:
        """Nobody to wait for."""

    def gather_texts(self, text: str) -> list[str]:
        """Only this process's text."""
        return [text]

    def gather_parts(self, part: "Tensor") -> "Tensor":
        """The one part is the whole."""
        return part

    def add_up(self, values: "Tensor") -> "Tensor":
        """The one part is the sum."""
        return values


ALONE = Alone()


def refuse_together(
    ranks: Ranks,
    what: str,
    problems: Sequence[str],
    remedy: str = "",
    kind: type[RefusedError] = RefusedError,
) -> None:
    """Come to one verdict: every rank raises, with everyone's problems, if any rank has one.

    Raises:
        RefusedError: some rank found a problem; it is of the class `kind`.
    """
    everyones = [json.loads(text) for text in ranks.gather_texts(json.dumps(list(problems)))]
    refuse(what, sorted({problem for own in everyones for problem in own}), remedy, kind)


def gather_mappings(own: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """The union of every rank's mapping of names to JSON values."""
    return {
        name: value
        for text in ranks.gather_texts(json.dumps(own))
        for name, value in json.loads(text).items()
    }


def share(items: Sequence[Item], ranks: Ranks) -> Sequence[Item]:
    """This rank's consecutive part of `items`; parts differ in length by at most one."""
    first, end = (len(items) * turn // ranks.size for turn in (ranks.rank, ranks.rank + 1))
    return items[first:end]


def share_by_size(items: Sequence[Item], sizes: Sequence[int], ranks: Ranks) -> list[Item]:
    """This rank's consecutive part of `items`: its share of the sum of sizes, to within the largest."""
    total, before, own = max(sum(sizes), 1), 0, []
    for item, size in zip(items, sizes, strict=True):
        if (2 * before + size) * ranks.size // (2 * total) == ranks.rank:  # whose share its middle is in
            own.append(item)
        before += size
    return own
