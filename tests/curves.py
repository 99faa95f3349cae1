"""Curves that a monitor has recorded, read with its own library: value by step, by name."""

import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

Curves = dict[str, dict[int, float]]


def tensorboard_curves(run_dir: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def mlflow_curves(folder: Path) -> Curves:
    from mlflow import MlflowClient

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(str(folder))
    (experiment,) = [e for e in client.search_experiments() if e.name == "aqtopo"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    return {
        name: {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }


def wandb_curves(run_dir: Path) -> Curves:
    """Read the offline files of one run, which may have been resumed."""
    from wandb.proto.wandb_internal_pb2 import Record

    curves: Curves = defaultdict(dict)
    names = set()
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        for data in _records(path.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("run"):
                names.add((record.run.run_id, record.run.display_name))
            row = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            for name, value in row.items():
                if not name.startswith("_"):
                    curves[name][int(float(row["step"]))] = float(value)
    assert len(names) == 1, names
    return curves


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log, which begins with 7 bytes of W&B."""
    block, place, record = 32768, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if kind == 0:
            place += block - place % block
            continue
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""
