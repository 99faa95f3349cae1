from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from aqtopo.cli.main import app
from aqtopo.cli.synth import with_progress
from aqtopo.data.store import open_store
from aqtopo.synthetic import simulator
from aqtopo.synthetic.config import SimulationConfig
from aqtopo.synthetic.simulator import simulate

TINY = ["--grid", "4x6", "--lat", "20", "40", "--lon", "100", "120"]


def synth(*arguments: str) -> str:
    return CliRunner().invoke(app, ["synth", *arguments], catch_exceptions=False).output


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store of December 2016 and January 2017 only, and what the command printed."""
    path = tmp_path_factory.mktemp("synth") / "tiny.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulator, "simulate", lambda config: islice(simulate(config), 11, 13))
        output = synth(str(path), "--years", "2016", "2017", *TINY, "--seed", "4", "--train-years", "2017")
    return path, output


def test_store_opens_and_is_marked_as_simulated(written: tuple[Path, str]) -> None:
    path, output = written
    store = open_store(path)
    assert store.years == (2016, 2017)
    assert len(store.times) == 2 * 31 * 24
    assert store.read(0).shape == (11, 4, 6)
    assert "not observations" in store.source
    assert "2016, 2017, simulated with seed 4" in output
    assert store.lat.tolist() == [22.5, 27.5, 32.5, 37.5]


def test_statistics_of_the_training_years_are_saved(written: tuple[Path, str]) -> None:
    store = open_store(written[0])
    assert tuple(store.statistics_years) == (2017,)
    assert 0 < store.std["pm25"] < 200


def test_progress_is_shown_up_to_the_last_day(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [xr.Dataset(coords={"time": np.arange(24 * days)}) for days in (100, 266)]
    passed_on = list(with_progress(iter(blocks), SimulationConfig(years=(2016,))))
    assert passed_on == blocks
    assert "366/366 simulated days" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "32-64"], "'32-64' is not of the form"),
        (["--grid", "2x2"], "too small"),
        (["--train-years", "2015"], "--train-years has 2015"),
        (["--lat", "40", "20"], "--lat 40 20"),
        (["--seed", "-1"], "seed = -1"),
    ],
)
def test_bad_input_is_refused_before_writing(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(ValueError, match=message):
        synth(str(out), "--years", "2016", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_existing_store_is_refused_before_the_simulation(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    out.mkdir()
    with pytest.raises(ValueError, match=r"exists already"):
        synth(str(out), "--years", "2016")
    assert list(out.iterdir()) == []


def test_a_world_for_ablations_is_written_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "simulate", lambda config: islice(simulate(config), 1))
    output = synth(str(tmp_path / "flat.zarr"), "--years", "2016", *TINY, "--world", "flat")
    assert "of the world flat" in output
    assert open_store(tmp_path / "flat.zarr").std["u"] == 0.0
