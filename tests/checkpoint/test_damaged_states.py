"""Files of a saved state, changed at random, with right hashes: read, or refused in our own words."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.checkpoint.files import describe_file
from aqtopo.checkpoint.inspection import open_state, verify_state
from aqtopo.checkpoint.manifest import read_manifest, write_manifest
from aqtopo.checkpoint.universal import convert, folder_in, universal_folder
from aqtopo.distributed.process_group import SINGLE_RANK
from tests.damage import (
    KINDS,
    Door,
    Opened,
    assert_changed_is_read_or_refused,
    fuzzed,
    opened_once,
    other_kind,
)

from .conftest import tag_folder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("saved")]


def _with_right_hashes(folder: Path) -> Path:
    manifest = read_manifest(folder)
    files = {name: describe_file(folder / name) for name in manifest.files if (folder / name).is_file()}
    write_manifest(manifest.model_copy(update={"files": {**manifest.files, **files}}), folder)
    return folder


def verify_shards(run_dir: Path) -> Door:
    folder = tag_folder(run_dir)
    files = [*folder.glob("*.pt"), *folder.glob("*.safetensors")]
    return Door(sorted(files), lambda: verify_state(open_state(_with_right_hashes(folder))))


def verify_universal(run_dir: Path) -> Door:
    folder = universal_folder(tag_folder(run_dir))
    files = [*folder.rglob("first.weight/*.pt"), *folder.glob("*.pt"), folder / "zero" / "optimizer_state.pt"]
    return Door(sorted(files), lambda: verify_state(open_state(_with_right_hashes(folder))))


def convert_shards(run_dir: Path) -> Door:
    folder, beside = tag_folder(run_dir), sorted(run_dir.parent.iterdir())

    def read() -> object:
        target = universal_folder(folder)
        shutil.rmtree(target.parent, ignore_errors=True)
        try:
            convert(_with_right_hashes(folder), target, SINGLE_RANK)
        finally:
            assert sorted(run_dir.parent.iterdir()) == beside, "a write outside"
        return True

    return Door(sorted(folder.glob("*optim_states.pt")), read)


def name_of_a_universal_state(run_dir: Path) -> Door:
    outer = universal_folder(tag_folder(run_dir)).parent
    return Door([outer / "latest_universal"], lambda: folder_in(outer))


DOORS = {
    door.__name__: door
    for door in (verify_shards, verify_universal, convert_shards, name_of_a_universal_state)
}


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory, saved: Path) -> Iterator[Opened]:
    with opened_once(
        lambda name: DOORS[name](Path(shutil.copytree(saved, tmp_path_factory.mktemp(name) / "run")))
    ) as opened:
        yield opened


@pytest.mark.parametrize("name", DOORS)
@fuzzed
@given(data=st.data())
def test_changed_files(doors: Opened, name: str, data: st.DataObject) -> None:
    door, reader = doors(name)
    assert_changed_is_read_or_refused(door.files, reader, data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DOORS)
def test_other_kinds_of_files(doors: Opened, name: str, kind: str) -> None:
    door, reader = doors(name)
    with other_kind(door.files[-1], kind):
        reader.assert_read_or_refused()
    reader.assert_read_or_refused()
