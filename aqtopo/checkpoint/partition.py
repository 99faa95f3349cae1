"""ZeRO-2's arithmetic: which elements of which parameter a rank owns.

A group's parameters lie one after the other in a flat buffer, filled up to a multiple of 2 W; rank r owns the
r-th of W equal parts. With n elements a part has 2 ceil(n / 2W), and rank r owns none iff r times that >= n.
Source: DeepSpeed 0.19.8, `runtime/zero/stage_1_and_2.py` (nccl_start_alignment_factor).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

ALIGNMENT = 2


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one parameter that one rank owns.

    Attributes:
        name: the parameter.
        start: first element, in the flattened parameter.
        length: elements; never 0.
        offset: where they begin in the rank's part.
    """

    name: str
    start: int
    length: int
    offset: int

    @property
    def in_parameter(self) -> slice:
        """The elements in the flattened parameter."""
        return slice(self.start, self.start + self.length)

    @property
    def in_part(self) -> slice:
        """The elements in the rank's part of the group."""
        return slice(self.offset, self.offset + self.length)


def part_size(elements: int, world: int) -> int:
    """Elements of each rank's part of a group, filling included."""
    return -(-elements // (ALIGNMENT * world)) * ALIGNMENT


def fragments(elements: Mapping[str, int], world: int, rank: int) -> Iterator[Fragment]:
    """What `rank` of `world` owns of a group.

    Args:
        elements: number of elements by parameter name, in the group's order.
        world: ranks.
        rank: one of them.
    """
    size = part_size(sum(elements.values()), world)
    first, end, position = rank * size, (rank + 1) * size, 0
    for name, count in elements.items():
        begin, stop = max(first, position), min(end, position + count)
        if begin < stop:
            yield Fragment(name, begin - position, stop - begin, begin - first)
        position += count


def owners(elements: Mapping[str, int], world: int, name: str) -> Iterator[tuple[int, Fragment]]:
    """Which ranks own which elements of one parameter of a group, in order."""
    size, before = part_size(sum(elements.values()), world), 0
    for other, count in elements.items():
        if other == name:
            break
        before += count
    position, end = before, before + elements[name]
    while position < end:
        rank, offset = divmod(position, size)
        length = min(end - position, size - offset)
        yield rank, Fragment(name, position - before, length, offset)
        position += length
