import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aqtopo.model.wind_order import WindOrder, sector_order_table
from aqtopo_kernels import wind_sector

WEST_WIND, SOUTH_WIND = (5.0, 0.0), (0.0, 5.0)


def make_order(regions: tuple[int, int] = (2, 2), *, ascending: bool = True) -> WindOrder:
    """Build the wind order of 4 x 8 patches of 2 x 2 cells."""
    return WindOrder(2, (4, 8), regions, sectors=16, calm_below=0.5, latitude_ascending=ascending)


def wind(u: float, v: float) -> Tensor:
    return torch.tensor([u, v]).view(1, 2, 1, 1).expand(1, 2, 8, 16)


def sector_of(order: WindOrder, field: Tensor) -> Tensor:
    u, v = field.unbind(1)
    return wind_sector(u, v, regions=order.regions, sectors=16, calm_below=order.calm_below)


def towards(sector: int, speed: float = 5.0) -> Tensor:
    theta = 2 * np.pi * sector / 16
    return wind(speed * float(np.cos(theta)), speed * float(np.sin(theta)))


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(region=shapes, sectors=st.integers(1, 32), ascending=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_sector_of_the_table_is_a_permutation(
    region: tuple[int, int], sectors: int, ascending: bool
) -> None:
    table = sector_order_table(region, sectors, latitude_ascending=ascending)
    patches = region[0] * region[1]
    assert table.shape == (sectors + 1, patches)
    assert (np.sort(table, axis=1) == np.arange(patches)).all()
    assert (table[-1] == np.arange(patches)).all()


@given(region=shapes, sector=st.integers(0, 15), ascending=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_patch_comes_before_one_that_lies_upwind_of_it(
    region: tuple[int, int], sector: int, ascending: bool
) -> None:
    order = sector_order_table(region, latitude_ascending=ascending)[sector]
    row, column = np.divmod(order, region[1])
    theta = 2 * np.pi * sector / 16
    along = column * np.cos(theta) + (row if ascending else -row) * np.sin(theta)
    assert (np.diff(along) > -2e-6).all()


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("regions", [(1, 1), (2, 2)])
def test_west_wind_puts_western_patches_first(regions: tuple[int, int], ascending: bool) -> None:
    order = make_order(regions, ascending=ascending)(wind(*WEST_WIND))[0]
    columns = (order % 8).view(regions[0] * regions[1], -1)
    assert (columns.diff(dim=1) >= 0).all()
    assert (columns[:, 0] < columns[:, -1]).all()


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("regions", [(1, 1), (2, 2)])
def test_south_wind_puts_southern_patches_first_whatever_way_latitude_runs(
    regions: tuple[int, int], ascending: bool
) -> None:
    order = make_order(regions, ascending=ascending)(wind(*SOUTH_WIND))[0]
    northward = (order // 8 if ascending else 3 - order // 8).view(regions[0] * regions[1], -1)
    assert (northward.diff(dim=1) >= 0).all()
    assert (northward[:, 0] < northward[:, -1]).all()


def test_ties_go_by_raster_index() -> None:
    table = sector_order_table((2, 3))
    assert table[0].tolist() == [0, 3, 1, 4, 2, 5]  # to the east: columns, each from row 0
    assert table[4].tolist() == [0, 1, 2, 3, 4, 5]  # to the north: rows
    assert table[2].tolist() == [0, 1, 3, 2, 4, 5]  # to the north-east: x + y
    assert table[12].tolist() == [3, 4, 5, 0, 1, 2]  # to the south


@pytest.mark.parametrize("region", [(2, 4), (8, 8), (64, 128)])
def test_unrounded_projections_would_misorder_sectors_that_have_ties(region: tuple[int, int]) -> None:
    y, x = np.divmod(np.arange(region[0] * region[1]), region[1])
    misordered = []
    for sector, exact in {0: x, 2: x + y, 4: y, 6: y - x, 8: -x, 10: -x - y, 12: -y, 14: x - y}.items():
        truth = np.argsort(exact, kind="stable")
        theta = 2 * np.pi * sector / 16
        unrounded = np.argsort(x * np.cos(theta) + y * np.sin(theta), kind="stable")
        assert (sector_order_table(region)[sector] == truth).all()
        if (unrounded != truth).any():
            misordered.append(sector)
    assert 3 <= len(misordered) <= 6


@pytest.mark.parametrize("sector", range(16))
def test_a_flipped_latitude_axis_visits_the_same_places(sector: int) -> None:
    # The flip changes raster indices, which decide ties, so orders are compared only without ties.
    row, column = np.divmod(np.arange(12), 4)
    theta = 2 * np.pi * sector / 16
    along = np.round(column * np.cos(theta) + row * np.sin(theta), 6)
    south_up = sector_order_table((3, 4))[sector]
    north_up = sector_order_table((3, 4), latitude_ascending=False)[sector]
    flipped = (2 - north_up // 4) * 4 + north_up % 4
    assert (along[south_up] == along[flipped]).all()
    if len(set(along.tolist())) == len(along):
        assert (south_up == flipped).all()


@pytest.mark.parametrize("sector", range(16))
def test_the_sector_is_the_nearest_to_the_wind_direction(sector: int) -> None:
    order = make_order()
    for turn in (-0.49, 0.0, 0.49):
        theta = 2 * np.pi * (sector + turn) / 16
        u, v = 3.0 * float(np.cos(theta)), 3.0 * float(np.sin(theta))
        assert sector_of(order, wind(u, v)).tolist() == [[sector] * 4]


def test_calm_regions_keep_raster_order() -> None:
    order = make_order()
    assert sector_of(order, wind(0.3, 0.39)).tolist() == [[16] * 4]
    assert sector_of(order, wind(0.3, 0.41)).tolist() != [[16] * 4]
    assert torch.equal(order(wind(0.3, 0.3))[0], order.calm_order())
    assert order.calm_order()[:8].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_missing_wind_counts_as_calm() -> None:
    assert sector_of(make_order(), wind(float("nan"), 3.0)).tolist() == [[16] * 4]


def test_opposing_winds_of_one_region_cancel_to_calm() -> None:
    field = wind(5.0, 0.0).clone()
    field[:, 0, ::2] = -5.0
    assert sector_of(make_order(), field).tolist() == [[16] * 4]


def test_each_region_follows_its_own_wind_and_regions_stay_in_raster_order() -> None:
    field = wind(*WEST_WIND).clone()
    field[:, :, 4:, 8:] = torch.tensor([0.0, -5.0]).view(2, 1, 1)
    order = make_order()
    assert sector_of(order, field).tolist() == [[0, 0, 0, 12]]
    region_of_token = order(field)[0] // 16 * 2 + order(field)[0] % 8 // 4
    assert region_of_token.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
    assert order(field)[0, -8:].tolist() == [28, 29, 30, 31, 20, 21, 22, 23]


@given(seed=st.integers(0, 2**31), regions=st.sampled_from([(1, 1), (2, 2), (4, 8), (1, 4)]))
@settings(max_examples=40, deadline=None)
def test_the_order_of_any_wind_is_a_permutation(seed: int, regions: tuple[int, int]) -> None:
    field = 4 * torch.randn(3, 2, 8, 16, generator=torch.Generator().manual_seed(seed))
    order = make_order(regions)(field)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort(1).values, torch.arange(32).expand(3, 32))


def test_nothing_leaves_the_device() -> None:
    # A tensor on the meta device has no values: reading one (.item(), a branch on it) raises.
    order = make_order().to("meta")(torch.empty(2, 2, 8, 16, device="meta"))
    assert order.shape == (2, 32)


def test_half_precision_winds_are_averaged_in_float32() -> None:
    field = wind(5.0, 0.0).clone()
    field[:, 0, 0, 0] = 3000.0
    assert torch.equal(make_order()(field.half()), make_order()(field))


def test_tables_are_not_part_of_the_state() -> None:
    assert make_order().state_dict() == {}


def test_refuses_regions_that_do_not_divide_the_patches() -> None:
    with pytest.raises(ValueError, match="4 x 8 patches cannot be divided into 3 x 2 regions"):
        make_order((3, 2))
