import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aqtopo_kernels import wind_order, wind_sector

TABLE = torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1], [3, 2, 1, 0], [1, 0, 3, 2], [0, 2, 1, 3]])
"""Arbitrary table of four sectors and calm, for regions of 2 x 2 patches."""


def field(value: float, batch: int = 1) -> Tensor:
    return torch.full((batch, 8, 12), value)


def order(u: Tensor, v: Tensor) -> Tensor:
    return wind_order(u, v, TABLE, regions=(2, 3), patch=2, calm_below=0.5)


@pytest.mark.parametrize(
    ("u", "v", "row"), [(5, 0, 0), (0, 5, 1), (-5, 0, 2), (0, -5, 3), (0.1, 0.1, 4), (float("nan"), 1, 4)]
)
def test_each_region_follows_its_row_of_the_table(u: float, v: float, row: int) -> None:
    found = order(field(u), field(v))[0].view(6, 4)
    corner = torch.tensor([0, 2, 4, 12, 14, 16])[:, None]
    inside = torch.tensor([0, 1, 6, 7])[TABLE[row]]
    assert torch.equal(found, corner + inside)


def test_a_region_follows_the_mean_of_its_own_wind() -> None:
    u, v = field(5.0), field(0.0)
    u[:, :4, :4] = torch.tensor([9.0, -9.0]).repeat(2)  # in the first region, winds that cancel
    v[:, :4, :4] = 1.0
    sectors = wind_sector(u, v, regions=(2, 3), sectors=4, calm_below=0.5)
    assert sectors.tolist() == [[1, 0, 0, 0, 0, 0]]


@given(seed=st.integers(0, 2**31), batch=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_every_row_is_a_permutation_and_regions_stay_in_raster_order(seed: int, batch: int) -> None:
    u, v = 3 * torch.randn(2, batch, 8, 12, generator=torch.Generator().manual_seed(seed))
    found = order(u, v)
    assert torch.equal(found.sort(1).values, torch.arange(24).expand(batch, -1))
    region = found // 12 * 3 + found % 6 // 2
    assert torch.equal(region, torch.arange(6).repeat_interleave(4).expand(batch, -1))


def test_no_value_is_read_back_from_the_device() -> None:
    u = torch.empty((2, 8, 12), device="meta")
    assert wind_order(u, u, TABLE.to("meta"), regions=(2, 3), patch=2, calm_below=0.5).shape == (2, 24)


@pytest.mark.slow
@pytest.mark.usefixtures("cpp_extensions")
def test_compiles_into_one_graph() -> None:
    u, v = 3 * torch.randn(2, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.compile(order, fullgraph=True)(u, v), order(u, v))


@pytest.mark.parametrize(
    ("u", "regions", "table", "message"),
    [
        (field(0)[0], (2, 3), TABLE, r"\(B, Y, X\) .* got \(8, 12\)"),
        (field(0), (3, 3), TABLE, "8 x 12 cells into 3 x 3 regions of patches of 2 x 2"),
        (field(0), (2, 3), TABLE[:, 1:], r"table \(S \+ 1, 4\) .* got \(5, 3\)"),
        (field(0), (2, 3), TABLE.float(), r"table in int64 .* got torch\.float32"),
        (field(0), (2, 3), TABLE.to("meta"), "device cpu, but got torch.int64 on meta"),
    ],
)
def test_invalid_arguments_are_refused_by_name(
    u: Tensor, regions: tuple[int, int], table: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        wind_order(u, u, table, regions=regions, patch=2, calm_below=0.5)


def test_sectors_of_regions_that_do_not_divide_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="8 x 12 cells into 3 x 3 regions"):
        wind_sector(field(0), field(0), regions=(3, 3), sectors=4, calm_below=0.5)
    with pytest.raises(ValueError, match=r"on cpu and \(1, 8, 12\) on meta"):
        wind_sector(field(0), field(0).to("meta"), regions=(2, 3), sectors=4, calm_below=0.5)
