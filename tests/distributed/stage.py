"""One rank of two on a node, which stages what two configurations ask for: stage.py BAD.json GOOD.json.

Prints a JSON line: why the first could not be staged, how many shards lie in the copy of the second and of
how many hours the copy gives what the store does, and whether the copy is there when all ranks have left.
"""

import json
import sys
from pathlib import Path

import numpy as np

from aqtopo.config import load_config
from aqtopo.data import open_store
from aqtopo.distributed import process_group
from aqtopo.distributed.launch import read_launch
from aqtopo.distributed.watchdog import start_watchdog
from aqtopo.refusal import retry_after
from aqtopo.run_directory.batch_job import BatchJob
from aqtopo.run_directory.run_log import RunLog
from aqtopo.training.prepare import NEVER, Prepared, ResumeOptions, prepare
from aqtopo.training.staging import staged

launch = read_launch()


def prepared(path: str) -> Prepared:
    return prepare(load_config(Path(path), []), launch, ResumeOptions(NEVER))


def main() -> None:
    bad, good = map(prepared, sys.argv[1:])
    log, job, found = RunLog(None, 1), BatchJob.from_environment(), {}
    with start_watchdog(launch, good.run_dir) as watchdog:
        process_group.connect(launch)
        try:
            with staged(bad, job, watchdog, log):
                pass
        except ValueError as error:
            found["problem"], found["retry"] = str(error), retry_after(error)
        with staged(good, job, watchdog, log) as store:
            there = open_store(store.path)
            assert store.copy is not None
            found["shards"] = len(list(Path(store.copy).glob("fields/c/*/0/0/0")))
            found["equal"] = sum(np.array_equal(store.read(hour), there.read(hour)) for hour in range(480))
        process_group.barrier()
        found["left"] = Path(store.copy).exists()
        sys.stdout.write(f"{json.dumps(found)}\n")
        process_group.disconnect()


main()
