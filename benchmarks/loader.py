"""Training samples a second of the loader, TopoFlow's published loader and a memory map.

The grid is 128 x 256 with 13 time-dependent inputs: 11 hourly fields, and latitude and longitude, which
TopoFlow stores with every hour. Micro-batches have 2 pairs (time, horizon), and there are 2 loader processes.
The contenders take turns:

* `loader`: the loader of a run, `aqtopo.data.loader.TrainingLoader`;
* `memmap`: the same loader, with hours from one np.memmap of the fields;
* `topoflow`: as published by TopoFlow. xarray opens one zarr array for each variable. A DataLoader with 2
  processes calls `isel` for each variable of each sample, then normalizes and stacks.

A check that all give the same normalized inputs comes first. `benchmarks/encodings.py` compares shard lengths
and encodings.
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
from benchmarks.measure import parse_arguments, report, time_paired

DAYS = 21
MICRO_BATCH, WORKERS = 2, 2


def config_for(store: Path, grid: tuple[int, int]) -> RunConfig:
    """Configuration of a run of one rank on the store, which has data in its first year only."""
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
    """Write three weeks of simulated weather as a store, as one array, and as arrays by variable."""
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
    """Reader of hours from a memory map instead of shards."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mapped: np.ndarray[Any, Any] | None = None

    def read(self, first: int, last: int) -> np.ndarray[Any, Any]:
        """Return hours as `aqtopo.data.shards.PlainShards.read` does."""
        if self._mapped is None:
            self._mapped = np.load(self._path, mmap_mode="r")
        return self._mapped[first:last]

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_mapped": None}


@dataclass(frozen=True, eq=False)
class MappedStore(Store):
    """Store that reads its hours from a memory map."""

    mapped: MappedFields | None = None

    @property
    def _fields(self) -> Any:
        return self.mapped


class TopoFlowSamples(Dataset[dict[str, torch.Tensor]]):
    """Pairs (time, horizon) read as in TopoFlow's dataset: variable by variable, through xarray."""

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


def repeat_epochs(epochs: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """Yield the items of epoch after epoch."""
    epoch = 0
    while True:
        yield from epochs(epoch)
        epoch += 1


def contenders(folder: Path, config: RunConfig) -> dict[str, Iterator[Any]]:
    """Return iterators over micro-batches, by contender."""
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
        **{name: repeat_epochs(lambda epoch, of=of: of.steps(epoch)) for name, of in loaders.items()},
        "topoflow": repeat_epochs(lambda _epoch: iter(topoflow)),
    }


def measure_loader(folder: Path, config: RunConfig, batches: int, rounds: int) -> dict[str, Any]:
    """Row of samples a second of each contender, and ratios of the loader to the others."""
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

    # A turn is long, so that the batches prefetched during another contender's turn do not matter.
    timed = time_paired({name: take(name, batches) for name in streams}, rounds)
    samples = batches * MICRO_BATCH
    return {
        **{f"{name}_samples_s": samples / timed.median(name) for name in streams},
        "times_topoflow": timed.ratio("topoflow", "loader"),
        "times_memmap": timed.ratio("memmap", "loader"),
    }


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    grid, batches, rounds = ((16, 32), 8, 2) if options.quick else ((128, 256), 60, 5)
    folder = Path(tempfile.mkdtemp(prefix="aqtopo_loader_"))
    try:
        config = config_for(make_stores(folder, grid), grid)
        report("loader", [measure_loader(folder, config, batches, rounds)], options)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    # Loader processes do not import the main module, so the classes of this one must not belong to it.
    from benchmarks import loader

    loader.main()
