"""Predictability: a model can learn from the simulated data."""

from itertools import islice

import numpy as np
import pytest

from aqtopo.synthetic.config import SimulationConfig
from aqtopo.synthetic.simulator import simulate
from aqtopo.variables import DYNAMIC_VARIABLES

HORIZON_H = 12


def upwind(field: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the value (T, H, W) upwind at the departure point `HORIZON_H` ago, on 4/3 degree cells."""
    rows, columns = np.indices(field.shape[1:])
    cells_per_wind = HORIZON_H * 3600 / 148e3
    row = np.clip(np.rint(rows - v * cells_per_wind), 0, field.shape[1] - 1).astype(int)
    column = np.clip(np.rint(columns - u * cells_per_wind / 0.84), 0, field.shape[2] - 1).astype(int)
    return field[np.arange(len(field))[:, None, None], row, column]


@pytest.mark.slow
def test_a_linear_regression_on_local_and_upwind_fields_beats_persistence_and_climatology() -> None:
    blocks = list(islice(simulate(SimulationConfig(years=(2016,), grid=(24, 48), seed=2)), 4))
    fields = np.concatenate([block["fields"].values for block in blocks])
    land = blocks[0]["static"].sel(static_channel="mask").values > 0
    now = {name: fields[:-HORIZON_H, c] for c, name in enumerate(DYNAMIC_VARIABLES)}
    fine = fields[:, DYNAMIC_VARIABLES.index("pm25")]
    change = (fine[HORIZON_H:] - fine[:-HORIZON_H])[:, land]
    arriving = upwind(now["pm25"], now["u"], now["v"]) - now["pm25"]
    features = np.stack([arriving, *(now[name] for name in DYNAMIC_VARIABLES)])[:, :, land]

    train, test = slice(0, 91 * 24 - HORIZON_H), slice(91 * 24, None)
    # One ridge regression per cell.
    skill_error = np.empty_like(change[test])
    for cell in range(change.shape[1]):
        x = np.concatenate([features[:, :, cell], np.ones((1, features.shape[1]))]).T
        centre, spread = x[train].mean(0), x[train].std(0) + 1e-6
        centre[-1], spread[-1] = 0, 1
        x = (x - centre) / spread
        gram = x[train].T @ x[train] + 50 * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[train].T @ change[train, cell])
        skill_error[:, cell] = x[test] @ weights - change[test, cell]

    truth = fine[HORIZON_H:][:, land]
    hour = np.arange(len(truth)) % 24
    climatology = np.stack([truth[train][hour[train] == h].mean(0) for h in range(24)])

    def rmse(error: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(error))))

    regression, persistence = rmse(skill_error), rmse(change[test])
    assert regression < 0.92 * persistence, (regression, persistence)
    assert regression < 0.75 * rmse(truth[test] - climatology[hour[test]])
