import socket

import pytest
import torch

from aqtopo.distributed.device import select_device
from aqtopo.distributed.launch import Launch, read_launch


def test_ds_accelerator_decides_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert select_device(read_launch({})).type == "cpu"
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    with pytest.raises(ValueError, match="DS_ACCELERATOR = xpu"):
        select_device(read_launch({}))


def launch(local_rank: int, local_size: int) -> Launch:
    return Launch("slurm", local_rank, local_rank, local_size, local_size, "nid001", 20001)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A node with four of them, as PyTorch would say."""
    for name in ("DS_ACCELERATOR", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever happens to it
        monkeypatch.delenv(name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.set_device", lambda _: None)
    return monkeypatch


def test_each_rank_takes_the_gpu_of_its_number_on_the_node(gpus: pytest.MonkeyPatch) -> None:
    assert select_device(launch(3, 4)) == torch.device("cuda", 3)
    gpus.setattr("torch.cuda.device_count", lambda: 1)
    gpus.setenv("ROCR_VISIBLE_DEVICES", "3")
    assert select_device(launch(3, 4)) == torch.device("cuda", 0)


def test_fewer_gpus_than_ranks_are_named_with_the_host(gpus: pytest.MonkeyPatch) -> None:
    expected = rf"{socket.gethostname()}: 8 ranks run on this node, but only 4 GPU\(s\) .*--gpus-per-node"
    with pytest.raises(ValueError, match=expected):
        select_device(launch(0, 8))


def test_gpus_of_the_job_that_cannot_be_seen_are_named_with_the_host(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr("torch.cuda.is_available", lambda: False)
    gpus.setenv("SLURM_JOB_GPUS", "0,1")
    with pytest.raises(ValueError, match=rf"{socket.gethostname()}: the job has GPUs, but PyTorch sees none"):
        select_device(launch(0, 2))
