"""Interface to the processes of a run: their number, barriers and collectives.

`process_group` implements it with torch.distributed; single-process commands use `SINGLE_RANK`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aqtopo.refusal import RefusedError, raise_problems

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


class RankGroup(Protocol):
    """The processes that save, restore or score together."""

    @property
    def rank(self) -> int:
        """Index of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def gather_texts(self, text: str) -> list[str]:
        """Return the texts of all ranks, in rank order, on every rank."""

    def gather_parts(self, part: "Tensor") -> "Tensor":
        """Concatenate the parts of all ranks, which have equal length, on every rank."""

    def all_reduce_sum(self, values: "Tensor") -> "Tensor":
        """Return the element-wise sum over all ranks, on every rank."""


@dataclass(frozen=True)
class SingleRank:
    """A single process without a process group."""

    rank: int = 0
    size: int = 1

    def barrier(self) -> None:
        """No-op."""

    def gather_texts(self, text: str) -> list[str]:
        """Return a list of the one text."""
        return [text]

    def gather_parts(self, part: "Tensor") -> "Tensor":
        """Return the one part."""
        return part

    def all_reduce_sum(self, values: "Tensor") -> "Tensor":
        """Return the values unchanged."""
        return values


SINGLE_RANK = SingleRank()


def raise_problems_on_all_ranks(
    ranks: RankGroup,
    summary: str,
    problems: Sequence[str],
    remedy: str = "",
    kind: type[RefusedError] = RefusedError,
) -> None:
    """Raise the same error on every rank if any rank has problems; it lists those of all ranks.

    Raises:
        RefusedError: a rank has a problem; the error is of class `kind`.
    """
    gathered = [json.loads(text) for text in ranks.gather_texts(json.dumps(list(problems)))]
    raise_problems(summary, sorted({problem for own in gathered for problem in own}), remedy, kind)


@contextmanager
def refusals_on_all_ranks(
    ranks: RankGroup, summary: str, errors: tuple[type[Exception], ...] = (RefusedError,)
) -> Iterator[None]:
    """Raise the errors of a block on every rank at its end, so that no rank skips a collective.

    Every rank runs the block, which must contain no collectives. `errors` are the classes that are caught.

    Raises:
        RefusedError: the block failed on a rank.
    """
    problems = []
    try:
        yield
    except errors as error:
        problems = [str(error)]
    raise_problems_on_all_ranks(ranks, summary, problems)


def gather_mappings(own: Mapping[str, Any], ranks: RankGroup) -> dict[str, Any]:
    """Return the union of the ranks' mappings from names to JSON values, on every rank."""
    return {
        name: value
        for text in ranks.gather_texts(json.dumps(own))
        for name, value in json.loads(text).items()
    }


def shard(items: Sequence[Item], ranks: RankGroup) -> Sequence[Item]:
    """Return this rank's consecutive shard of `items`; shard lengths differ by at most one."""
    first, end = (len(items) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    return items[first:end]


def shard_by_size(items: Sequence[Item], sizes: Sequence[int], ranks: RankGroup) -> list[Item]:
    """Return this rank's consecutive shard of `items`; its size is at most the mean plus the largest item.

    The total size is divided into equal intervals, one per rank. An item belongs to the interval that
    contains its middle.
    """
    total, before, own = max(sum(sizes), 1), 0, []
    for item, size in zip(items, sizes, strict=True):
        if (2 * before + size) * ranks.size // (2 * total) == ranks.rank:
            own.append(item)
        before += size
    return own
