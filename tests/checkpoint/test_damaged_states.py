"""Files of a saved state, changed at random, with right hashes: read, or refused in our own words."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.checkpoint.files import describe_file
from aqtopo.checkpoint.inspection import open_state, verify_state
from aqtopo.checkpoint.manifest import read_manifest, write_manifest
from aqtopo.checkpoint.universal import convert, folder_in, universal_folder
from aqtopo.distributed.process_group import SINGLE_RANK
from tests.damage import (  # noqa: F401  (the tests run here)
    FuzzTarget,
    test_changed_files,
    test_other_kinds_of_files,
)

from .conftest import tag_folder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("saved")]


def _with_right_hashes(folder: Path) -> Path:
    manifest = read_manifest(folder)
    files = {name: describe_file(folder / name) for name in manifest.files if (folder / name).is_file()}
    write_manifest(manifest.model_copy(update={"files": {**manifest.files, **files}}), folder)
    return folder


def verify_shards(run_dir: Path) -> FuzzTarget:
    folder = tag_folder(run_dir)
    files = [*folder.glob("*.pt"), *folder.glob("*.safetensors")]
    return FuzzTarget(sorted(files), lambda: verify_state(open_state(_with_right_hashes(folder))))


def verify_universal(run_dir: Path) -> FuzzTarget:
    folder = universal_folder(tag_folder(run_dir))
    files = [*folder.rglob("first.weight/*.pt"), *folder.glob("*.pt"), folder / "zero" / "optimizer_state.pt"]
    return FuzzTarget(sorted(files), lambda: verify_state(open_state(_with_right_hashes(folder))))


def convert_shards(run_dir: Path) -> FuzzTarget:
    folder, beside = tag_folder(run_dir), sorted(run_dir.parent.iterdir())

    def read() -> object:
        target = universal_folder(folder)
        shutil.rmtree(target.parent, ignore_errors=True)
        try:
            convert(_with_right_hashes(folder), target, SINGLE_RANK)
        finally:
            assert sorted(run_dir.parent.iterdir()) == beside, "a write outside"
        return True

    return FuzzTarget(sorted(folder.glob("*optim_states.pt")), read)


def name_of_a_universal_state(run_dir: Path) -> FuzzTarget:
    outer = universal_folder(tag_folder(run_dir)).parent
    return FuzzTarget([outer / "latest_universal"], lambda: folder_in(outer))


def _of_a_copy(make: Callable[[Path], FuzzTarget]) -> Callable[[Path, Path], FuzzTarget]:
    return lambda folder, saved: make(Path(shutil.copytree(saved, folder / "run")))


TARGETS = {
    target.__name__: _of_a_copy(target)
    for target in (verify_shards, verify_universal, convert_shards, name_of_a_universal_state)
}
FIXTURES = ("saved",)
