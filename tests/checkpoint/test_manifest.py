"""The manifest's seal, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.checkpoint.files import append_checksum
from aqtopo.checkpoint.manifest import Manifest, read_manifest, write_manifest
from aqtopo.refusal import RefusedError


@pytest.fixture
def folder(tmp_path: Path, plain_manifest: Callable[..., Manifest]) -> Path:
    folder = tmp_path / "epoch00-step000001"
    folder.mkdir()
    rates, losses = {"all": 1 / 3}, {"running": float("nan"), "probe": 0.3}
    write_manifest(plain_manifest(folder.name, next_lrs=rates, **losses), folder)
    return folder


def test_numbers_come_back_to_the_bit_and_nan_as_none(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.run.next_lrs["all"] == 1 / 3
    assert manifest.run.losses.running is None
    assert manifest.run.losses.probe == 0.3


def test_every_single_flipped_bit_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 32) if place % 3 else range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit if bit < 8 else bit
            path.write_bytes(damaged)
            with pytest.raises(RefusedError, match=r"manifest\.json"):
                read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 2}'])
def test_other_content_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RefusedError, match=r"manifest\.json is damaged or not of schema 1"):
        read_manifest(folder)


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="so its files cannot be checked"):
        read_manifest(tmp_path)


def change(folder: Path, **entries: object) -> None:
    """Change entries of a manifest and update its checksum, as an attacker would."""
    path = folder / "manifest.json"
    tree = json.loads(path.read_bytes())
    tree.pop("sha256")
    path.write_text(append_checksum(json.dumps(tree | entries, indent=1)), encoding="utf-8")


def group(*names: str) -> dict[str, object]:
    tensors = [{"name": name, "shape": [2], "dtype": "float32"} for name in names]
    return {"name": "all", "hyperparameters": {}, "next_lr": None, "parameters": tensors}


ONE_GROUP = {"groups": [group("a.b")], "optimizer_steps": {"all": 1.0}}
RECORD = {"size": 1, "sha256": ["x"]}
OUTSIDE = ["../../../../victim/owned", "/victim", "a/b", "..", "a..b", ".a", "a.", "a\x1b[2J", "a\n", ""]


def test_names_of_tensors_and_files_are_accepted(folder: Path) -> None:
    change(folder, **ONE_GROUP, files={"zero/a.b/fp32.pt": RECORD, "bf16_zero_pp_rank_0.pt": RECORD})
    assert list(read_manifest(folder).parameters) == ["a.b"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("place", ["groups", "other_tensors", "tied"])
def test_name_of_a_tensor_that_leads_elsewhere_is_refused(folder: Path, place: str, name: str) -> None:
    tensor = {"name": name, "shape": [2], "dtype": "float32"}
    entry = {"groups": [group(name)], "other_tensors": [tensor], "tied": {name: "a.b"}}[place]
    change(folder, **(ONE_GROUP | {place: entry}))
    with pytest.raises(RefusedError, match=rf"manifest\.json is damaged.*{place}"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", "./x", "a/", "..", "\x1b[2J", "x\n", ""])
def test_name_of_a_file_that_leads_elsewhere_is_refused(folder: Path, name: str) -> None:
    change(folder, files={name: RECORD})
    with pytest.raises(RefusedError, match=r"manifest\.json is damaged.*files"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"groups": [group("a", "a")], "optimizer_steps": {"all": 1.0}}, "a parameter is listed twice"),
        ({"optimizer_steps": {"other": 1.0}}, "do not have the same names"),
        ({"files": {"x": {"size": 2**21, "sha256": []}}}, "0 hashes do not fit a file of 2097152 bytes"),
        ({"world_size": 0}, "world_size"),
    ],
)
def test_contradictions_are_refused(folder: Path, entries: dict[str, object], fault: str) -> None:
    change(folder, **entries)
    with pytest.raises(RefusedError, match=fault):
        read_manifest(folder)
