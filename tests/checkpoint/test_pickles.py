"""A checkpoint is data: what is more than that, or no torch file, is refused by name."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from aqtopo.checkpoint.files import load_torch, save_torch
from aqtopo.refusal import RefusedError


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.proof,)


def test_payload_runs_in_an_unsafe_load(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "proof"), tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "proof").is_dir()


def test_payload_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"param": Payload(tmp_path / "proof")}, tmp_path / "x.pt")
    with pytest.raises(RefusedError, match=r"x\.pt holds more than data.*: it needs posix\.mkdir") as refused:
        load_torch(tmp_path / "x.pt")
    assert "weights_only" not in str(refused.value)  # torch's advice would run it
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x04.", pickle.dumps({"a": 1}), b"garbage" * 99]
)
def test_invalid_torch_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(RefusedError, match=r"x\.pt"):
        load_torch(tmp_path / "x.pt")


def test_crc32_is_disabled_only_while_saving(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    save_torch({"param": torch.arange(3.0)}, tmp_path / "x.pt")
    assert torch.serialization.get_crc32_options() == before
    assert load_torch(tmp_path / "x.pt")["param"].tolist() == [0, 1, 2]


def test_enum_is_pickled_by_value_on_old_pythons_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_name(stage: ZeroStageEnum, _protocol: int) -> tuple[Any, ...]:
        return getattr, (ZeroStageEnum, stage.name)  # as Python 3.11.2 does, Debian 12's

    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", by_name)
    save_torch({"zero_stage": ZeroStageEnum.gradients}, tmp_path / "x.pt")
    assert load_torch(tmp_path / "x.pt") == {"zero_stage": ZeroStageEnum.gradients}
