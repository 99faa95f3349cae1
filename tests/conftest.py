"""Shared fixtures: a store of three short years on an 8 x 16 grid, and a run on it."""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import settings
from numpy.typing import NDArray

from aqtopo.config import RunConfig
from aqtopo.data import write_statistics, write_store
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_CHANNELS, VARIABLES
from tests.damage import OpenTarget, target_opener

# Every run tests the same examples, so a failure belongs to the change that is tested.
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")

TINY_GRID = (8, 16)
TINY_YEARS = (2016, 2017, 2018)
TINY_DAYS = 10
"""Days of each year, from January 1st. 144 hours of each year have all four targets."""


@pytest.fixture(autouse=True)
def kept_launch() -> Iterator[None]:
    """Fail a test that leaves rank or port in the environment: programs of later tests would inherit them."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    yield
    assert {name: os.environ.get(name) for name in names} == before


def _smooth_waves(rng: np.random.Generator, hours: int) -> NDArray[np.float32]:
    """Return (hours, channel, lat, lon), about [-1, 1]: two waves travel over the grid in each channel."""
    rows, columns = TINY_GRID
    shape = (2, len(DYNAMIC_VARIABLES), 1, 1)
    phase = rng.uniform(0, 2 * np.pi, shape)
    time = np.arange(hours)[:, None, None, None, None] * rng.uniform(0.05, 0.3, shape)
    y = np.arange(rows)[:, None] * rng.uniform(0.2, 0.8, shape)
    x = np.arange(columns) * rng.uniform(0.1, 0.5, shape)
    waves: NDArray[np.float32] = np.sin(time + y + x + phase).mean(axis=1).astype(np.float32)
    return waves


def _fields(seed: int) -> tuple[NDArray[np.float32], NDArray[np.datetime64]]:
    centre = np.array([VARIABLES[name].topoflow_mean for name in DYNAMIC_VARIABLES], np.float32)[
        :, None, None
    ]
    spread = np.array([VARIABLES[name].topoflow_std for name in DYNAMIC_VARIABLES], np.float32)[:, None, None]
    starts = [np.datetime64(f"{year}-01-01", "h") for year in TINY_YEARS]
    times = np.concatenate([start + np.arange(24 * TINY_DAYS).astype("timedelta64[h]") for start in starts])
    waves = _smooth_waves(np.random.default_rng(seed), times.size)
    return centre + 0.9 * spread * waves, times


def _static(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.float32]:
    """Static fields: a slanting ridge, population east of it, a mask without the western column."""
    lat2d, lon2d = np.meshgrid(lat, lon, indexing="ij")
    elevation = 200 + 3000 * np.exp(-(((lon2d - lon.mean() - 0.5 * (lat2d - lat.mean())) / 6.0) ** 2))
    population = 100 + 5000 * (lon2d > lon.mean())
    mask = (lon2d > lon[0]).astype(float)
    by_name = {
        "elevation": elevation,
        "population": population,
        "lat2d": lat2d,
        "lon2d": lon2d,
        "mask": mask,
    }
    return np.stack([by_name[name] for name in STATIC_CHANNELS]).astype(np.float32)


def make_tiny_dataset(seed: int = 0) -> xr.Dataset:
    """Return the content of the tiny store as a dataset for `write_store`."""
    rows, columns = TINY_GRID
    lat, lon = np.linspace(20.0, 48.0, rows), np.linspace(74.0, 134.0, columns)
    fields, times = _fields(seed)
    return xr.Dataset(
        {
            "fields": (("time", "channel", "lat", "lon"), fields),
            "static": (("static_channel", "lat", "lon"), _static(lat, lon)),
        },
        coords={
            "time": times.astype("datetime64[ns]"),
            "channel": list(DYNAMIC_VARIABLES),
            "lat": lat,
            "lon": lon,
            "static_channel": list(STATIC_CHANNELS),
        },
        attrs={"source": "smooth waves made for tests", "simulated": True},
    )


@pytest.fixture
def tiny_dataset() -> xr.Dataset:
    """A new dataset with the content of the tiny store, which a test may change."""
    return make_tiny_dataset()


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only store: 8 x 16, ten days each of 2016, 2017 and 2018, statistics over 2016."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.zarr"
    write_store(make_tiny_dataset(), path)
    write_statistics(path, [2016])
    return path


TinyConfig = Callable[..., RunConfig]
"""Function that returns a `RunConfig`; each keyword changes a section."""


def tiny_tree(store: Path, run_dir: Path) -> dict[str, Any]:
    """Return a run of one rank with 24 training, 6 validation and 6 test times of a tiny store."""
    return {
        "name": "tiny",
        "data": {
            "store": str(store),
            "grid": list(TINY_GRID),
            "horizons": [12, 24, 48, 96],
            "train_years": [2016],
            "validation_years": [2017],
            "test_years": [2018],
            "time_stride_hours": 6,
            "validation_stride_hours": 24,
            "test_stride_hours": 24,
            "workers": 0,
        },
        "model": {
            "patch": 2,
            "dim": 32,
            "depth": 2,
            "heads": 2,
            "dropout": 0.0,
            "drop_path": 0.0,
            "regions": [2, 2],
        },
        "optimizer": {"base_lr": 1e-3},
        "training": {"run_dir": str(run_dir), "epochs": 2, "nodes": 1, "ranks_per_node": 1},
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 2},
        },
    }


@pytest.fixture
def tiny_config(tiny_store: Path, tmp_path: Path) -> TinyConfig:
    """Make a run on the tiny store: `tiny_config(training={"ranks_per_node": 2}, model={"dropout": 0.1})`.

    Every keyword is a section of the configuration (or `name`, `description`). It is merged over `tiny_tree`.
    The run directory is in the test's folder.
    """
    base = tiny_tree(tiny_store, tmp_path / "run")

    def make(**changes: Any) -> RunConfig:
        merged = {
            key: {**base.get(key, {}), **change} if isinstance(change, dict) else change
            for key, change in changes.items()
        }
        return RunConfig.model_validate({**base, **merged})

    return make


@pytest.fixture(scope="session")
def cpp_extensions() -> None:
    """Skip where PyTorch cannot compile C++ extensions."""
    if " " in torch.__file__:  # PyTorch passes its own path to the linker without quotes
        pytest.skip(f"PyTorch links no extension in {Path(torch.__file__).parent}: use a path without spaces")
    compiler, header = os.environ.get("CXX", "c++"), Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no C++ compiler {compiler}; on Debian, as root: apt-get install g++")
    if not header.exists():
        pytest.skip(f"there is no {header}; on Debian, as root: apt-get install python3-dev")


SaveUntrained = Callable[..., Path]
"""Function that saves the first weights of a run as a trained state and returns the run directory."""


@pytest.fixture(scope="session")
def save_untrained() -> SaveUntrained:
    """Make a run directory with one saved state, for tests of evaluation, forecasts and reports.

    Its weights are the first weights times `factor`.
    """
    from safetensors.torch import save_file

    from aqtopo.checkpoint.files import describe_file
    from aqtopo.checkpoint.manifest import WEIGHTS_FILE, write_manifest
    from aqtopo.checkpoint.tags import Tag, write_tag
    from aqtopo.data import open_store
    from aqtopo.data.statistics import scaling_digest
    from aqtopo.model import Terrain, build_model
    from aqtopo.run_directory.run_file import CONFIG_FILE

    def save(config: RunConfig, factor: float = 1.0) -> Path:
        run_dir, store = Path(config.training.run_dir), open_store(config.data.store)
        tag = Tag(epoch=0, step=7, step_in_epoch=7, val_loss=0.5, train_loss=0.6)
        tag.folder(run_dir).mkdir(parents=True)
        (run_dir / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
        weights = {name: factor * tensor for name, tensor in model.state_dict().items()}
        save_file(weights, tag.folder(run_dir) / WEIGHTS_FILE)
        write_tag(tag, run_dir)
        manifest = make_manifest(
            tag.name,
            {path.name: describe_file(path) for path in sorted(tag.folder(run_dir).iterdir())},
            config=json.loads(config.to_json()),
            config_digest=config.digest,
            data_digest=store.digest,
            scaling_digest=scaling_digest(config, store),
        )
        write_manifest(manifest, tag.folder(run_dir))
        return run_dir

    return save


@pytest.fixture(scope="session")
def load_untrained(
    tmp_path_factory: pytest.TempPathFactory, tiny_store: Path, save_untrained: SaveUntrained
) -> Callable[..., Any]:
    """Load a run of the tiny store with its first weights; keywords change the section `data`."""
    from aqtopo.inference.load import load_run

    def load(**data: Any) -> Any:
        tree = tiny_tree(tiny_store, tmp_path_factory.mktemp("run") / "run")
        return load_run(save_untrained(RunConfig.model_validate({**tree, "data": tree["data"] | data})))

    return load


MakeManifest = Callable[..., Any]
"""Function that returns a manifest without trained parameters: `plain_manifest("tag", running=0.6)`."""


def make_manifest(tag: str, files: Any = None, **facts: Any) -> Any:
    """Return a manifest with the entries that readers of weights use.

    Args:
        tag: name of the saved state.
        files: file records by name.
        facts: losses and other fields of `RunFacts`.
    """
    from aqtopo.checkpoint.manifest import Losses, Manifest, Position, RunFacts

    losses = {"train": 0.6, "running": 0.6, "probe": None, "best_validation": 0.5, "validations_waited": 0}
    run = {"next_lrs": {}, "seed": 0, "precision": "fp32", "config": {}, "config_digest": "x"}
    run |= {"data_digest": None} | {key: value for key, value in facts.items() if key not in losses}
    return Manifest(
        schema=1,
        layout="sharded",
        tag=tag,
        run=RunFacts(
            position=Position(epoch=0, step_in_epoch=7, step=7, next_samples=None),
            losses=Losses(**(losses | {key: value for key, value in facts.items() if key in losses})),
            **run,
        ),
        groups=(),
        other_tensors=(),
        tied={},
        optimizer="AdamW",
        optimizer_steps={},
        zero_stage=2,
        world_size=1,
        global_samples=14,
        skipped_steps=0,
        loss_scaler=None,
        versions={},
        files=files or {},
    )


@pytest.fixture
def plain_manifest() -> MakeManifest:
    """Make manifests of states without trained parameters."""
    return make_manifest


@pytest.fixture
def untrained_run(tiny_config: TinyConfig, save_untrained: SaveUntrained) -> Path:
    """Run directory of `tiny_config()` with its first weights saved."""
    return save_untrained(tiny_config())


NO_RIGHT = "no right to mount a file system: run as root, with CAP_SYS_ADMIN"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(NO_RIGHT)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def full_disk(small_disk: Path) -> Path:
    """A file system without a free byte."""
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    return small_disk


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize the tests of `tests/damage.py` with the tables of the module that imports them."""
    if "target_name" in metafunc.fixturenames:
        metafunc.parametrize("target_name", metafunc.module.TARGETS)
    if "known_fault" in metafunc.fixturenames:
        rows = metafunc.module.KNOWN_FAULTS
        metafunc.parametrize(
            "known_fault", rows, ids=[f"{number} {row[0]}" for number, row in enumerate(rows)]
        )


@pytest.fixture(scope="module")
def open_target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenTarget]:
    """Return a function that makes a target of the module and starts the process that reads it."""
    given = [request.getfixturevalue(name) for name in request.module.FIXTURES]
    makers = request.module.TARGETS
    with target_opener(lambda name: makers[name](tmp_path_factory.mktemp(name), *given)) as opened:
        yield opened
