from pathlib import Path

import numpy as np
import pytest

from aqtopo.data import Store, open_store
from aqtopo.evaluation.points import BANDS, REGIONS, Region, areas_of, parse_region


@pytest.fixture
def store(tiny_store: Path) -> Store:
    return open_store(tiny_store)


def test_bands_follow_one_another_without_a_gap() -> None:
    assert [band.lowest_m for band in BANDS[1:]] == [band.below_m for band in BANDS[:-1]]
    assert (BANDS[0].lowest_m, BANDS[-1].below_m) == (-np.inf, np.inf)


def test_a_box_holds_the_cells_whose_centres_lie_in_it(store: Store) -> None:
    areas = areas_of(store, [Region("corner", 20.0, 24.0, 78.0, 90.0)])
    cells = areas.cells[areas.names.index("corner")]
    rows, columns = np.nonzero(cells)
    assert set(store.lat[rows]) == {20.0, 24.0}
    assert set(store.lon[columns]) == {78.0, 82.0, 86.0, 90.0}


def test_known_regions_without_a_cell_are_named(store: Store) -> None:
    areas = areas_of(store)
    boxes = {name for name, kind in zip(areas.names, areas.kinds, strict=True) if kind == "region"}
    assert boxes | set(areas.empty) >= {region.name for region in REGIONS}
    assert areas.empty == ("Sichuan Basin",)


def test_a_region_is_read_from_text() -> None:
    assert parse_region("Sichuan=28.5:31.5,103.5:107") == Region("Sichuan", 28.5, 31.5, 103.5, 107.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Sichuan", "not of the form"),
        ("a=1:2", "not of the form"),
        ("a=1:2,3:x", "not of the form"),
        ("=1:2,3:4", "needs a unique name"),
        ("plains=1:2,3:4", "needs a unique name"),
        ("a=2:1,3:4", "is empty"),
    ],
)
def test_an_invalid_region_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_region(text)


def test_a_region_outside_the_domain_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="sea contains no cell"):
        areas_of(store, [Region("sea", -10.0, 0.0, 80.0, 90.0)])


def test_two_regions_of_one_name_are_refused(store: Store) -> None:
    east = Region("east", 20.0, 48.0, 110.0, 134.0)
    with pytest.raises(ValueError, match="two regions are called east"):
        areas_of(store, [east, east])


def test_area_weights_are_cosines_of_latitude_with_mean_1_inside_the_mask(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    areas = areas_of(store, weighting="area")
    mask = store.static["mask"] > 0
    ratios = areas.cell_weights / np.cos(np.deg2rad(store.lat))[:, None]
    np.testing.assert_allclose(ratios, ratios[0, 0])
    assert areas.cell_weights[mask].mean() == pytest.approx(1.0)
    plain = areas_of(store)
    assert (plain.cell_weights == 1.0).all()
    flags = np.arange(mask.size).reshape(mask.shape) % 3 == 0
    np.testing.assert_array_equal(areas.counts(flags), plain.weighted(flags))
    expected = [(areas.cell_weights * flags)[cells].sum() for cells in areas.cells]
    np.testing.assert_allclose(areas.weighted(flags), expected)
