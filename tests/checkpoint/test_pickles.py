"""A checkpoint is data: a planted payload is refused by everything that reads it, and never runs."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aqtopo.checkpoint.convert import open_universal
from aqtopo.checkpoint.files import describe_file
from aqtopo.checkpoint.inspection import diff_states, inspect_state, open_state, verify_state
from aqtopo.checkpoint.manifest import read_manifest, write_manifest
from aqtopo.checkpoint.pickles import load_data, save_data
from aqtopo.checkpoint.ranks import ALONE
from aqtopo.checkpoint.universal import universal_folder
from aqtopo.refusal import RefusedError

from .conftest import tag_folder

pytestmark = pytest.mark.xdist_group("saved")

SHARD = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
PICKLED = [
    ("sharded", SHARD),
    ("sharded", "mp_rank_00_model_states.pt"),
    ("universal", "mp_rank_00_model_states.pt"),
    ("universal", "zero/optimizer_state.pt"),
    ("universal", "zero/first.weight/fp32.pt"),
    ("universal", "zero/first.weight/exp_avg.pt"),
    ("universal", "zero/first.weight/exp_avg_sq.pt"),
    ("universal", "zero/first.weight/step.pt"),
]


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.proof,)


def plant(folder: Path, name: str, proof: Path) -> None:
    """Put a payload into a file and seal the folder again, as somebody would who means it."""
    torch.save({"param": Payload(proof), "optimizer_state_dict": Payload(proof)}, folder / name)
    manifest = read_manifest(folder)
    files = manifest.files | {name: describe_file(folder / name)}
    write_manifest(manifest.model_copy(update={"files": files}), folder)


def test_payload_would_run_if_it_were_trusted(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "proof"), tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "proof").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), PICKLED)
def test_planted_payload_is_refused_everywhere(run_dir: Path, tmp_path: Path, layout: str, name: str) -> None:
    tag, proof = tag_folder(run_dir), tmp_path / "proof"
    if layout == "sharded":
        shutil.rmtree(universal_folder(tag).parent)
    folder = tag if layout == "sharded" else universal_folder(tag)
    plant(folder, name, proof)

    readers: dict[str, Callable[[], object]] = {
        "resume and convert": lambda: _read_all(tag),
        "verify": lambda: verify_state(open_state(folder)),
    }
    if name == SHARD or name.endswith(("fp32.pt", "avg.pt", "avg_sq.pt")):
        readers["inspect"] = lambda: list(inspect_state(open_state(folder)))
        readers["diff"] = lambda: list(diff_states(open_state(folder), open_state(tag_folder(run_dir, 6))))
    for reader in readers.values():
        with pytest.raises(RefusedError, match=Path(name).name):
            reader()
    assert not proof.exists()


def _read_all(tag: Path) -> None:
    """What a resume reads."""
    state = open_universal(tag, ALONE)
    for name in state.manifest.parameters:
        for kind in ("fp32", "exp_avg", "exp_avg_sq"):
            state.tensor(name, kind)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x04.", pickle.dumps({"a": 1}), b"garbage" * 99]
)
def test_what_is_no_torch_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(RefusedError, match=r"x\.pt"):
        load_data(tmp_path / "x.pt")


def test_checksums_are_left_out_only_while_saving(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    save_data({"param": torch.arange(3.0)}, tmp_path / "x.pt")
    assert torch.serialization.get_crc32_options() == before
    assert load_data(tmp_path / "x.pt")["param"].tolist() == [0, 1, 2]
