"""Training samples a second from the loader, against the published way and against a memory map.

At 128 x 256 with 13 inputs that change (11 hourly fields; latitude and longitude, which TopoFlow stores with
every hour), micro-batches of 2 pairs (time, horizon) and 2 loader processes. Contenders take turns:

* `loader`: a run's own, `aqtopo.data.loader.TrainingLoader`;
* `memmap`: the same loader, its hours read from one np.memmap of the fields;
* `topoflow`: as TopoFlow publishes it, one zarr array a variable, opened by xarray, `isel` for each variable
  of each sample, normalised and stacked, in 2 processes of a DataLoader.

All give the same normalised inputs, which is checked first. Length and encoding of shards were chosen by
`benchmarks/encodings.py`.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.utils.data import DataLoader, Dataset

from aqtopo.config import RunConfig
from aqtopo.data import Store, normalization_for, open_store, write_statistics, write_store
from aqtopo.data.loader import TrainingLoader
from aqtopo.data.samples import epoch_order, sample_table
from aqtopo.data.workers import worker_context, worker_setup
from aqtopo.synthetic.config import SimulationConfig
from aqtopo.synthetic.simulator import simulate
from benchmarks.measure import arguments, paired, report

DAYS = 21
MICRO_BATCH, WORKERS = 2, 2


def config_for(store: Path, grid: tuple[int, int]) -> RunConfig:
    """A run of one rank on the store, whose first year is all there is."""
    return RunConfig.model_validate(
        {
            "name": "loader",
            "data": {
                "store": str(store),
                "grid": list(grid),
                "train_years": [2016],
                "validation_years": [2017],
                "test_years": [2018],
                "workers": WORKERS,
                "prefetch": 4,
            },
            "model": {"regions": [4, 4]},
            "optimizer": {"base_lr": 1e-4},
            "training": {"run_dir": "unused", "epochs": 1, "nodes": 1, "ranks_per_node": 1},
            "deepspeed": {
                "train_micro_batch_size_per_gpu": MICRO_BATCH,
                "gradient_accumulation_steps": 1,
                "zero_optimization": {"stage": 2},
            },
        }
    )


def make_stores(folder: Path, grid: tuple[int, int]) -> Path:
    """Three weeks of simulated weather: as a store, as one array, and as arrays by variable."""
    blocks, hours = [], 0
    for block in simulate(SimulationConfig(years=(2016,), grid=grid)):
        blocks.append(block)
        hours += block.sizes["time"]
        if hours >= 24 * DAYS:
            break
    store = folder / "store.zarr"
    write_store(iter(blocks), store)
    write_statistics(store, [2016])
    opened = open_store(store)
    fields = np.stack([opened.read(index) for index in range(opened.times.size)])
    np.save(folder / "fields.npy", fields)
    by_variable = {
        name: (("time", "lat", "lon"), fields[:, place]) for place, name in enumerate(opened.channels)
    } | {
        name: (("time", "lat", "lon"), np.broadcast_to(opened.static[name], fields[:, 0].shape))
        for name in ("lat2d", "lon2d")
    }
    dataset = xr.Dataset(by_variable, coords={"time": opened.times.astype("datetime64[ns]")})
    chunks = {name: {"chunks": (24, *fields.shape[2:])} for name in by_variable}
    dataset.to_zarr(folder / "by_variable.zarr", zarr_format=3, consolidated=False, encoding=chunks)
    return store


class MappedFields:
    """Hours from a memory map, in place of the shards."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mapped: np.ndarray[Any, Any] | None = None

    def read(self, first: int, last: int) -> np.ndarray[Any, Any]:
        """As `aqtopo.data.shards.FieldReader.read`."""
        if self._mapped is None:
            self._mapped = np.load(self._path, mmap_mode="r")
        return self._mapped[first:last]

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_mapped": None}


@dataclass(frozen=True, eq=False)
class MappedStore(Store):
    """A store whose hours come from a memory map."""

    mapped: MappedFields | None = None

    @property
    def _fields(self) -> Any:
        return self.mapped


class TopoFlowSamples(Dataset[dict[str, torch.Tensor]]):
    """Pairs (time, horizon) read as TopoFlow's dataset does: variable by variable, through xarray."""

    def __init__(self, path: Path, store: Store, config: RunConfig) -> None:
        self._path, self._config = path, config
        self._normalization = normalization_for(config, store)
        self._static = store.static
        table = sample_table(config, store.times, "train")
        times, leads = table.lookup(epoch_order(0, 0, len(table)))
        self._starts = store.locate(times)
        self._ends = store.locate(times + leads[:, 0].astype("timedelta64[h]"))
        self._hourly = tuple(
            name for name in config.data.variables if name not in ("elevation", "population")
        )
        self._dataset: xr.Dataset | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if self._dataset is None:
            self._dataset = xr.open_zarr(self._path, zarr_format=3, consolidated=False)
        variables, targets = self._config.data.variables, self._config.data.targets
        inputs = [self._field(name, int(self._starts[number])) for name in variables]
        truth = [self._field(name, int(self._ends[number])) for name in targets]
        return {"inputs": torch.from_numpy(np.stack(inputs)), "targets": torch.from_numpy(np.stack(truth))}

    def _field(self, name: str, index: int) -> np.ndarray[Any, Any]:
        assert self._dataset is not None
        hourly = name in self._hourly
        values = self._dataset[name].isel(time=index).values if hourly else self._static[name]
        return self._normalization.normalize(np.asarray(values)[None], [name])[0]


def endless(epochs: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        yield from epochs(epoch)
        epoch += 1


def contenders(folder: Path, config: RunConfig) -> dict[str, Iterator[Any]]:
    """Iterators over micro-batches, by contender."""
    store = open_store(config.data.store)
    values = {name: getattr(store, name) for name in store.__dataclass_fields__}
    mapped = MappedStore(**values, mapped=MappedFields(folder / "fields.npy"))
    topoflow = DataLoader(
        TopoFlowSamples(folder / "by_variable.zarr", store, config),
        batch_size=MICRO_BATCH,
        num_workers=WORKERS,
        multiprocessing_context=worker_context(config.data.worker_start),
        worker_init_fn=worker_setup(),
        prefetch_factor=4,
        persistent_workers=True,
    )
    loaders = {"loader": TrainingLoader(store, config, 0, 1), "memmap": TrainingLoader(mapped, config, 0, 1)}
    return {
        **{name: endless(lambda epoch, of=of: of.steps(epoch)) for name, of in loaders.items()},
        "topoflow": endless(lambda _epoch: iter(topoflow)),
    }


def measure_loader(folder: Path, config: RunConfig, batches: int, rounds: int) -> dict[str, Any]:
    """Samples a second of each contender, and how the loader compares with the others."""
    streams = contenders(folder, config)
    (ours,), (mapped,), theirs = (next(streams[name]) for name in ("loader", "memmap", "topoflow"))
    torch.testing.assert_close(ours.inputs, theirs["inputs"], rtol=0, atol=0)
    torch.testing.assert_close(ours.targets[:, 0], theirs["targets"], rtol=0, atol=0)
    torch.testing.assert_close(ours.inputs, mapped.inputs, rtol=0, atol=0)

    def take(name: str, count: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(count):
                next(streams[name])

        return work

    # What was read ahead while another contender ran is gone before its own turn is timed long enough.
    timed = paired({name: take(name, batches) for name in streams}, rounds)
    samples = batches * MICRO_BATCH
    return {
        **{f"{name}_samples_s": samples / timed.median(name) for name in streams},
        "times_topoflow": timed.ratio("topoflow", "loader"),
        "times_memmap": timed.ratio("memmap", "loader"),
    }


def main() -> None:
    """Print the figures."""
    options = arguments(__doc__)
    grid, batches, rounds = ((16, 32), 8, 2) if options.quick else ((128, 256), 60, 5)
    folder = Path(tempfile.mkdtemp(prefix="aqtopo_loader_"))
    try:
        config = config_for(make_stores(folder, grid), grid)
        report("loader", [measure_loader(folder, config, batches, rounds)], options)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
