"""Cost of saving and resuming 52 M parameters on two ranks, next to DeepSpeed's own save.

    python -m benchmarks.resume [--ranks 2] [--rounds 3]

Saves alternate between DeepSpeed's `save_checkpoint` and ours, which adds hashes, syncs, the manifest and the
commit; medians over the rounds. Then a fresh engine resumes: convert, load, verify, each timed.
"""

import argparse
import json
import multiprocessing
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[1] / "ds_configs" / "resume_reference.json"
STEP = 311


def run_rank(rank: int, ranks: int, port: int, rounds: int, folder: str) -> None:
    """One rank's part; rank 0 prints the figures."""
    import torch

    from aqtopo.checkpoint.changes import Allowed, match_names
    from aqtopo.checkpoint.convert import open_universal
    from aqtopo.checkpoint.manifest import Losses, Position, RunFacts
    from aqtopo.checkpoint.restore import load_module, read_weights, restore_engine
    from aqtopo.checkpoint.save import save
    from aqtopo.checkpoint.tags import Tag
    from aqtopo.checkpoint.verify import verify_engine
    from aqtopo.config import CheckpointConfig, load_config
    from aqtopo.model import Terrain, build_model
    from aqtopo.training.distributed import Launch, World, barrier, connect
    from aqtopo.training.engine import build_engine
    from aqtopo.training.resume import model_groups, other_tensors

    config = load_config(CONFIG)
    device = connect(Launch("torch", rank, rank, ranks, ranks, "127.0.0.1", port))
    world = World(rank, ranks, device)
    terrain = Terrain.flat(config.data.grid)
    engine = build_engine(config, build_model(config, terrain), ranks, device)
    zero = engine.optimizer
    for master in zero.single_partition_of_fp32_groups:
        moments = {"exp_avg": torch.randn_like(master) * 1e-3, "exp_avg_sq": torch.rand_like(master) * 1e-6}
        zero.optimizer.state[master] = {"step": torch.tensor(float(STEP))} | {
            kind: moment.detach() for kind, moment in moments.items()
        }
    engine.global_steps = STEP
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

    def timed(action: Any) -> tuple[float, Any]:
        barrier()
        began = time.monotonic()
        result = action()
        barrier()
        return time.monotonic() - began, result

    run_dir, plain, ours = Path(folder), [], []
    tag = Tag(3, STEP, 50, None, 0.7)
    for number in range(rounds):
        name = f"plain{number}"
        plain.append(timed(lambda name=name: engine.save_checkpoint(folder, tag=name))[0])
        seconds, tag = timed(lambda tag=tag: save(engine, run_dir, tag, facts, CheckpointConfig(), world))
        ours.append(seconds)
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in engine.module.parameters()),
        "ranks": ranks,
        "deepspeed_save_s": statistics.median(plain),
        "save_s": statistics.median(ours),
        "save_ratio": statistics.median(ours) / statistics.median(plain),
    }
    engine.destroy()
    source = tag.folder(run_dir)
    figures["convert_s"], state = timed(lambda: open_universal(source, world))
    model = build_model(config, terrain)
    names = match_names(state.manifest, model_groups(config, model), other_tensors(model), Allowed())

    def load_weights() -> Any:
        weights = read_weights(state.folder, world)
        load_module(model, weights, names)
        return weights

    seconds, weights = timed(load_weights)
    engine = build_engine(config, model, ranks, device)
    figures["load_s"] = seconds + timed(lambda: restore_engine(engine, state, names))[0]
    figures["verify_s"], verified = timed(
        lambda: verify_engine(engine, state, names, weights, Allowed(), world)
    )
    figures["resume_s"] = figures["convert_s"] + figures["load_s"] + figures["verify_s"]
    figures["verified"] = f"{verified.parameters}/{verified.total}"
    if rank == 0:
        print(
            json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}, indent=1)
        )


def main() -> None:
    """Start the ranks and wait."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "aqtopo.training.loop"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="aqtopo-resume-")
    try:
        processes = [
            context.Process(target=run_rank, args=(rank, chosen.ranks, port, chosen.rounds, folder))
            for rank in range(chosen.ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit(1)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
