from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from aqtopo.config import ModelConfig, RunConfig
from aqtopo.config.sections import LOCAL_PATH_CELLS
from aqtopo.model import Terrain, build_model
from aqtopo.model.local_path import LocalPath
from aqtopo.training.engine import group_parameters

GRID = (20, 24)
HORIZONS = (12, 24, 48, 96)
LEADS = torch.tensor([[12.0, 96.0], [24.0, 60.0]])


@pytest.fixture
def path() -> LocalPath:
    path = LocalPath(
        ModelConfig(local_path=True, local_width=8), GRID, variables=3, targets=2, horizons=HORIZONS
    )
    path.initialise(1)
    torch.nn.init.normal_(path.weight, generator=torch.Generator().manual_seed(2))
    return path


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(2, 3, *GRID, generator=torch.Generator().manual_seed(3))


def test_the_first_output_is_zero(inputs: Tensor) -> None:
    path = LocalPath(ModelConfig(local_path=True), GRID, variables=3, targets=2, horizons=HORIZONS)
    path.initialise(1)
    assert path(inputs, LEADS).shape == (2, 2, 2, *GRID)
    assert not path(inputs, LEADS).any()


def test_a_cell_depends_on_the_cells_within_its_receptive_field(path: LocalPath, inputs: Tensor) -> None:
    changed = inputs.clone()
    changed[0, :, 10, 12] += 1.0
    moved = (path(changed, LEADS) != path(inputs, LEADS)).any(2).any(1)
    rows, columns = torch.nonzero(moved[0], as_tuple=True)
    reach = LOCAL_PATH_CELLS // 2
    assert (rows.min(), rows.max()) == (10 - reach, 10 + reach)
    assert (columns.min(), columns.max()) == (12 - reach, 12 + reach)
    assert not moved[1].any()


def test_lead_times_and_samples_are_independent(path: LocalPath, inputs: Tensor) -> None:
    together = path(inputs, LEADS)
    for sample in range(2):
        for lead in range(2):
            alone = path(inputs[sample : sample + 1], LEADS[sample : sample + 1, lead : lead + 1])
            torch.testing.assert_close(together[sample, lead], alone[0, 0])
    assert not torch.allclose(together[:, 0], together[:, 1])


def test_the_model_adds_it_and_has_a_group_for_it(tiny_config: Callable[..., RunConfig]) -> None:
    sizes = {"data": {"grid": [16, 16]}, "model": {"local_path": True, "local_width": 4, "regions": [2, 2]}}
    plain = tiny_config(data=sizes["data"], model={"regions": [2, 2]})
    config = tiny_config(**sizes)
    terrain = Terrain(np.zeros((16, 16), np.float32), np.linspace(20, 50, 16), np.linspace(80, 120, 16))
    model, without = build_model(config, terrain), build_model(plain, terrain)
    own = [name for name, _ in model.named_parameters() if name.startswith("local_path.")]
    groups = group_parameters([name for name, _ in model.named_parameters()], config)
    assert groups["local_path"] == own
    assert "local_path" not in group_parameters([name for name, _ in without.named_parameters()], plain)
    assert model.local_path is not None
    torch.nn.init.ones_(model.local_path.weight)
    generator = torch.Generator().manual_seed(0)
    inputs, wind = (torch.randn(1, channels, 16, 16, generator=generator) for channels in (15, 2))
    leads = torch.tensor([[12.0, 96.0]])
    expected = without.eval()(inputs, wind, leads, None) + model.local_path(inputs, leads)
    torch.testing.assert_close(model.eval()(inputs, wind, leads, None), expected)


def test_a_horizon_has_its_own_weights_and_others_are_interpolated(path: LocalPath, inputs: Tensor) -> None:
    def at(hours: float) -> Tensor:
        forecast: Tensor = path(inputs, torch.full((2, 1), hours))
        return forecast

    before = {hours: at(hours) for hours in HORIZONS}
    torch.testing.assert_close(at(36), (before[24] + before[48]) / 2)
    torch.testing.assert_close(at(6), before[12])
    torch.testing.assert_close(at(120), before[96])
    with torch.no_grad():
        path.weight[1] += 1.0
    assert [torch.equal(at(hours), before[hours]) for hours in HORIZONS] == [True, False, True, True]


def test_cells_scale_and_shift_their_features(path: LocalPath) -> None:
    zeros = torch.zeros(1, 3, *GRID)
    same = path(zeros, LEADS[:1])
    with torch.no_grad():
        path.maps[-1, :, 4, 5] += 1.0
    moved = (path(zeros, LEADS[:1]) != same).any(2).any(1)[0]
    assert torch.nonzero(moved).tolist() == [[4, 5]]
    ones = torch.ones(1, 3, *GRID)
    same = path(ones, LEADS[:1])
    with torch.no_grad():
        path.gains[-1, :, 6, 7] += 1.0
    moved = (path(ones, LEADS[:1]) != same).any(2).any(1)[0]
    assert torch.nonzero(moved).tolist() == [[6, 7]]
