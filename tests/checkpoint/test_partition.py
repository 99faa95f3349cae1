"""ZeRO's arithmetic, at 400 ranks and for groups smaller than the world."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.checkpoint.shards import fragments, owners, part_size

GROUPS = st.lists(st.integers(1, 200), min_size=1, max_size=12).map(
    lambda sizes: {f"p{i}": size for i, size in enumerate(sizes)}
)


@given(GROUPS, st.integers(1, 400))
def test_fragments_of_all_ranks_cover_the_group_once(elements: dict[str, int], world: int) -> None:
    seen = {name: [0] * count for name, count in elements.items()}
    for rank in range(world):
        offset = 0
        for fragment in fragments(elements, world, rank):
            assert fragment.offset == offset
            offset += fragment.length
            for place in range(fragment.start, fragment.start + fragment.length):
                seen[fragment.name][place] += 1
        assert offset <= part_size(sum(elements.values()), world)
    assert all(set(counts) == {1} for counts in seen.values())


@given(GROUPS, st.integers(1, 400))
def test_owners_agree_with_fragments(elements: dict[str, int], world: int) -> None:
    by_rank = {(rank, fragment) for rank in range(world) for fragment in fragments(elements, world, rank)}
    by_name = {owner for name in elements for owner in owners(elements, world, name)}
    assert by_name == by_rank


@given(st.integers(1, 10**6), st.integers(1, 400))
def test_rank_owns_no_elements_as_the_formula_predicts(count: int, world: int) -> None:
    for rank in {0, world // 2, world - 1}:
        nothing = not list(fragments({"p": count}, world, rank))
        assert nothing == (rank * 2 * math.ceil(count / (2 * world)) >= count)
    if count >= 2 * world * (world - 1):
        assert list(fragments({"p": count}, world, world - 1))


@pytest.mark.parametrize("world", [64, 400])
def test_no_rank_owns_more_than_its_share(world: int) -> None:
    elements = {"pos_embed": 8192 * 768, "var_embed": 15 * 768, "norm.weight": 768, "norm.bias": 768}
    share = sum(elements.values()) / world
    for rank in range(world):
        assert sum(fragment.length for fragment in fragments(elements, world, rank)) <= share + 2
