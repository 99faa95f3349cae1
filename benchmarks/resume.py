"""Cost of saving and resuming on two ranks with 52 M parameters, compared with DeepSpeed's own save.

`held up` is the time that training waits. Hashes, fsyncs, the manifest and the commit follow in the
background; `committed` is the time until they are done if nothing else runs. DeepSpeed's save has no fsync
and no hashes. Then a new engine resumes: convert, load, verify. Its tensors are compared bit by bit with the
files.
"""

import json
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from aqtopo.config import CheckpointConfig, RunConfig, load_config
from aqtopo.fault_testing.forked import PRELOADED
from benchmarks.measure import Timings, device, parse_arguments, report

CONFIG = Path(__file__).parents[1] / "ds_configs" / "resume_reference.json"
SMALL = ["model.dim=64", "model.depth=2", "model.heads=2"]
STEP = 311
RANKS = 2


def run_rank(rank: int, ranks: int, port: int, quick: bool, folder: str) -> None:
    """Measure on one rank; rank 0 writes the rows to `rows.json`."""
    from aqtopo.distributed.launch import Launch
    from aqtopo.distributed.process_group import TorchRanks, connect
    from aqtopo.model import Terrain, build_model
    from aqtopo.training.engine import build_engine

    config = load_config(CONFIG, SMALL if quick else [])
    device = connect(Launch("torch", rank, rank, ranks, ranks, "127.0.0.1", port))
    world = TorchRanks(rank, ranks, device)
    engine = build_engine(config, build_model(config, Terrain.flat(config.data.grid)), ranks, device)
    fill_moments(engine)
    saving, source = time_saves(engine, config, Path(folder), world, rounds=1 if quick else 7)
    engine.destroy()
    rows = [saving, time_resume(config, source, world)]
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def fill_moments(engine: Any) -> None:
    """Set the optimizer's moments to values as after some steps."""
    import torch

    zero = engine.optimizer
    for master in zero.single_partition_of_fp32_groups:
        moments = {"exp_avg": torch.randn_like(master) * 1e-3, "exp_avg_sq": torch.rand_like(master) * 1e-6}
        zero.optimizer.state[master] = {"step": torch.tensor(float(STEP), device=master.device)} | {
            kind: moment.detach() for kind, moment in moments.items()
        }
    engine.global_steps = STEP


def time_action(action: Callable[[], Any], world: Any) -> tuple[float, Any]:
    """Return the seconds between two barriers around an action, and its result."""
    world.barrier()
    began = time.monotonic()
    result = action()
    world.barrier()
    return time.monotonic() - began, result


def time_saves(
    engine: Any, config: RunConfig, folder: Path, world: Any, rounds: int
) -> tuple[dict[str, Any], Path]:
    """Time DeepSpeed's save and ours in turn, each after a sync; return the row and our last folder."""
    from aqtopo.checkpoint.manifest import Losses, Position, RunFacts
    from aqtopo.checkpoint.save import Saver
    from aqtopo.checkpoint.tags import Tag

    facts = RunFacts(
        position=Position(epoch=3, step_in_epoch=50, step=STEP, next_samples=None),
        losses=Losses(train=0.7, running=0.7, probe=None, best_validation=None, validations_waited=0),
        next_lrs={},
        seed=0,
        precision="fp32",
        config=json.loads(config.to_json()),
        config_digest=config.digest,
        data_digest=None,
    )
    saver, tag = Saver(folder, CheckpointConfig(), world), Tag(3, STEP, 50, None, 0.7)
    timings = Timings({"deepspeed": [], "held up": [], "committed": []})
    plain = folder / "plain"
    for round_ in range(rounds + 1):  # the first one is a warm-up
        os.sync()
        seconds = {"deepspeed": time_action(lambda: engine.save_checkpoint(str(plain), tag="a"), world)[0]}
        if world.rank == 0:
            shutil.rmtree(plain)
        os.sync()
        seconds["held up"], tag = time_action(lambda tag=tag: saver.save(engine, tag, facts), world)
        seconds["committed"] = seconds["held up"] + time_action(saver.finish, world)[0]
        for name in timings.seconds if round_ else ():
            timings.seconds[name].append(seconds[name])
    row = {
        "parameters": sum(p.numel() for p in engine.module.parameters()),
        "ranks": world.size,
        "deepspeed's save [s]": timings.median("deepspeed"),
        "training held up [s]": timings.median("held up"),
        "held up / deepspeed's": timings.ratio("held up", "deepspeed"),
        "committed after [s]": timings.median("committed"),
        "committed / deepspeed's": timings.ratio("committed", "deepspeed"),
    }
    return row, tag.folder(folder)


def time_resume(config: RunConfig, source: Path, world: Any) -> dict[str, Any]:
    """Time the parts of a resume from a state that was not resumed before."""
    from aqtopo.checkpoint.changes import Allowed, match_names
    from aqtopo.checkpoint.restore import load_module, read_weights, restore_engine, verify_engine
    from aqtopo.checkpoint.universal import open_universal
    from aqtopo.model import Terrain, build_model
    from aqtopo.training.engine import build_engine
    from aqtopo.training.resume import model_groups, other_tensors

    convert, state = time_action(lambda: open_universal(source, world), world)
    model = build_model(config, Terrain.flat(config.data.grid))
    names = match_names(state.manifest, model_groups(config, model), other_tensors(model), Allowed())
    reading, weights = time_action(lambda: read_weights(state.folder, world), world)
    load_module(model, weights, names)
    engine = build_engine(config, model, world.size, world.device)
    restoring, _ = time_action(lambda: restore_engine(engine, state, names), world)
    rates = {group["name"]: group["lr"] for group in engine.optimizer.param_groups}
    verify, verified = time_action(
        lambda: verify_engine(engine, state, names, weights, rates, Allowed(), world), world
    )
    return {
        "convert [s]": convert,
        "load [s]": reading + restoring,
        "verify [s]": verify,
        "resume overhead [s]": convert + reading + restoring + verify,
        "equal to the bit": f"{verified.parameters}/{verified.total}",
    }


def measure(*, quick: bool, ranks: int = RANKS) -> list[dict[str, Any]]:
    """Start the ranks, wait for them and return the rows.

    Raises:
        ChildProcessError: a rank failed; its error is on stderr.
    """
    on_gpu = device().type == "cuda"  # a forked process cannot use a GPU that its parent has looked for
    multiprocessing.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="aqtopo-resume-")
    try:
        start = get_context("spawn").Process if on_gpu else get_context("forkserver").Process
        processes = [start(target=run_rank, args=(rank, ranks, port, quick, folder)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise ChildProcessError("a rank of the resume failed; its error is above")
        rows: list[dict[str, Any]] = json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))
        return rows
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    report("resume", measure(quick=options.quick), options)


if __name__ == "__main__":
    main()
