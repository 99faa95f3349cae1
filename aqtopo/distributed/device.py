"""Which device a rank runs on: its own GPU, or the CPU."""

import os
import socket
from collections.abc import Mapping

import torch

from aqtopo.training.launch import Launch

GPUS_OF_JOB = frozenset({"SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"})
"""Any of these says that Slurm gave the job GPUs."""

HIDING = frozenset({"ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"})
"""Variables that hide GPUs from a process."""


def select_device(launch: Launch) -> torch.device:
    """This rank's device: what DS_ACCELERATOR says, else a GPU where there is one.

    DeepSpeed reads the same variable when it is first imported.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if "DS_ACCELERATOR" not in os.environ and not visible and GPUS_OF_JOB & os.environ.keys():
        raise ValueError(
            f"{socket.gethostname()}: the job has GPUs, but PyTorch sees none of them. Look at the driver, "
            "at PyTorch's build (ROCm or CUDA) and at the *_VISIBLE_DEVICES variables; to train on the CPU, "
            "export DS_ACCELERATOR=cpu."
        )
    kind = os.environ.setdefault("DS_ACCELERATOR", "cuda" if visible else "cpu")
    if kind == "cuda":  # ROCm counts as cuda
        index = _gpu_of(launch, visible, os.environ)
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if kind != "cpu":
        raise ValueError(f"DS_ACCELERATOR = {kind}: aqtopo runs on cuda (ROCm counts as that) and cpu.")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // launch.local_size))
    return torch.device("cpu")


def _gpu_of(launch: Launch, visible: int, environ: Mapping[str, str]) -> int:
    """The index of this rank's GPU.

    Raises:
        ValueError: there are fewer GPUs than ranks on this node.
    """
    if visible == 1 and HIDING & environ.keys():
        return 0  # a wrapper shows each rank its own GPU only
    if visible < launch.local_size:
        raise ValueError(
            f"{socket.gethostname()}: {launch.local_size} ranks were started on this node, and {visible} "
            "GPU(s) are visible. Ask Slurm for as many GPUs as tasks (--gpus-per-node), or start fewer ranks."
        )
    return launch.local_rank
