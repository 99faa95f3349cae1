"""Device of a rank: its own GPU, or the CPU."""

import os
import socket

import torch

from aqtopo.distributed.launch import Launch

GPUS_OF_JOB = frozenset({"SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"})
"""Variables that Slurm sets if the job has GPUs."""

GPU_MASKS = frozenset({"ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"})
"""Variables that hide GPUs from a process."""


def select_device(launch: Launch) -> torch.device:
    """Return this rank's device: DS_ACCELERATOR, or else a GPU if there is one.

    DeepSpeed reads DS_ACCELERATOR when it is first imported.

    Raises:
        ValueError: DS_ACCELERATOR is unknown, or the GPUs of the job are not visible.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if "DS_ACCELERATOR" not in os.environ and not visible and GPUS_OF_JOB & os.environ.keys():
        raise ValueError(
            f"{socket.gethostname()}: the job has GPUs, but PyTorch sees none of them. Check the driver, "
            "PyTorch's build (ROCm or CUDA) and the *_VISIBLE_DEVICES variables. To train on the CPU, "
            "export DS_ACCELERATOR=cpu."
        )
    kind = os.environ.setdefault("DS_ACCELERATOR", "cuda" if visible else "cpu")
    if kind == "cuda":  # also for ROCm
        index = _gpu_of(launch, visible)
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if kind != "cpu":
        raise ValueError(f"DS_ACCELERATOR = {kind}: must be cuda (also for ROCm) or cpu.")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // launch.local_size))
    return torch.device("cpu")


def _gpu_of(launch: Launch, visible: int) -> int:
    """Return the index of this rank's GPU; raise ValueError if the node has fewer GPUs than ranks."""
    if visible == 1 and GPU_MASKS & os.environ.keys():
        return 0  # a wrapper masks all GPUs but the rank's own
    if visible < launch.local_size:
        raise ValueError(
            f"{socket.gethostname()}: {launch.local_size} ranks run on this node, but only {visible} GPU(s) "
            "are visible. Request one GPU per task (--gpus-per-node), or start fewer ranks."
        )
    return launch.local_rank
