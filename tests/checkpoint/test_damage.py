"""One flipped bit, a truncation, a missing or a swapped file, in each kind of file: refused, by its name."""

import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aqtopo.checkpoint import universal
from aqtopo.checkpoint.files import describe_file, exclusive_lock_on_all_ranks
from aqtopo.checkpoint.inspection import find_state, open_state, verify_state
from aqtopo.checkpoint.manifest import read_manifest, write_manifest
from aqtopo.checkpoint.tags import CHECKPOINTS, remove_stale
from aqtopo.checkpoint.universal import open_universal, universal_folder
from aqtopo.distributed.process_group import SINGLE_RANK
from aqtopo.refusal import RefusedError

from .conftest import tag_folder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("saved")]

SHARDED = (
    "manifest.json",
    "state.json",
    "weights.safetensors",
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
)
UNIVERSAL = (
    "manifest.json",
    "weights.safetensors",
    "mp_rank_00_model_states.pt",
    "zero/optimizer_state.pt",
    "zero/first.weight/fp32.pt",
    "zero/first.weight/exp_avg.pt",
    "zero/first.weight/exp_avg_sq.pt",
    "zero/first.weight/step.pt",
)


def flip_a_bit(path: Path, seed: int) -> None:
    data, chosen = bytearray(path.read_bytes()), random.Random(seed)
    data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, seed: int) -> None:
    path.write_bytes(path.read_bytes()[: -random.Random(seed).randint(1, 40)])


def remove(path: Path, seed: int) -> None:
    path.unlink()


def swap(path: Path, seed: int) -> None:
    other = Path(str(path).replace("step000005", "step000006"))
    assert other != path
    data = other.read_bytes()
    assert data != path.read_bytes()
    path.write_bytes(data)


DAMAGES = [flip_a_bit, truncate, remove, swap]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", SHARDED)
def test_damaged_tag_is_refused_by_name(run_dir: Path, damage: object, name: str) -> None:
    tag = tag_folder(run_dir)
    for seed in range(3 if damage is flip_a_bit else 1):
        intact = (tag / name).read_bytes()
        damage(tag / name, seed)  # type: ignore[operator]
        with pytest.raises(RefusedError, match=name):
            open_universal(tag, SINGLE_RANK)
        with pytest.raises(RefusedError, match=name):
            verify_state(open_state(tag))
        (tag / name).write_bytes(intact)
    verify_state(open_state(tag))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", UNIVERSAL)
def test_damaged_universal_form_is_refused_by_name_and_converted_again_from_its_tag(
    run_dir: Path, damage: object, name: str
) -> None:
    tag = tag_folder(run_dir)
    path = universal_folder(tag) / name
    if damage is swap and name.endswith(("optimizer_state.pt",)):
        with pytest.raises(AssertionError):
            swap(path, 0)  # the same for both tags: nothing to swap
        return
    intact = path.read_bytes()
    if name == "weights.safetensors":  # the tag's own file, under a second name
        path.unlink()
        path.write_bytes(intact)
    for seed in range(3 if damage is flip_a_bit else 1):
        damage(path, seed)  # type: ignore[operator]
        with pytest.raises(RefusedError, match=Path(name).name):
            open_universal(universal_folder(tag), SINGLE_RANK)
        path.write_bytes(intact)
    damage(path, 0)  # type: ignore[operator]
    with pytest.warns(
        UserWarning, match=rf"(?s){Path(name).name}.*Converting again from {tag}, which is undamaged"
    ):
        open_universal(tag, SINGLE_RANK)
    assert path.read_bytes() == intact
    assert not list((run_dir / CHECKPOINTS).glob("*.discarded"))


def test_undamaged_tag_under_another_name_is_refused(run_dir: Path) -> None:
    tag = tag_folder(run_dir)
    shutil.rmtree(tag)
    shutil.copytree(tag_folder(run_dir, 6), tag)
    with pytest.raises(RefusedError, match="describes epoch00-step000006, but is in epoch00-step000005"):
        open_universal(tag, SINGLE_RANK)


def test_universal_form_of_another_state_is_converted_again(run_dir: Path) -> None:
    tag = tag_folder(run_dir)
    other = tag_folder(run_dir, 6)
    shutil.rmtree(universal_folder(tag).parent)
    shutil.copytree(universal_folder(other).parent, universal_folder(tag).parent)
    universal_folder(tag).with_name(other.name).rename(universal_folder(tag))
    with pytest.warns(UserWarning, match="but is in epoch00-step000005"):
        state = open_universal(tag, SINGLE_RANK)
    assert state.manifest.run.position.step == 5


def test_universal_form_converted_by_another_run_meanwhile_is_used(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = tag_folder(run_dir)
    shutil.rmtree(universal_folder(tag).parent)
    hold = exclusive_lock_on_all_ranks

    @contextmanager
    def held_late(*arguments: Any) -> Iterator[None]:
        monkeypatch.undo()
        open_universal(tag, SINGLE_RANK)  # the other run, which held the lock before
        with hold(*arguments):
            yield

    monkeypatch.setattr(universal, "exclusive_lock_on_all_ranks", held_late)
    made = open_universal(tag, SINGLE_RANK)
    assert verify_state(open_state(made.folder)) > 40


def test_every_file_and_folder_is_synced_before_the_universal_form_is_renamed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag, synced = tag_folder(run_dir), list[str]()
    done = universal_folder(tag).parent
    shutil.rmtree(done)
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    open_universal(tag, SINGLE_RANK)
    linked = f"{tag.name}/weights.safetensors"  # synced when the tag was saved
    expected = {path.relative_to(done).as_posix() for path in done.rglob("*")} - {linked}
    names = {re.sub(rf"^{done}\.\w{{8}}\.tmp/|\.\w{{8}}\.tmp$", "", name) for name in synced}
    assert expected <= names
    assert synced[-1] == str(run_dir / CHECKPOINTS)


@pytest.mark.parametrize("seed", range(8))
def test_file_that_names_the_inner_folder_is_refused_when_damaged(run_dir: Path, seed: int) -> None:
    outer = universal_folder(tag_folder(run_dir)).parent
    assert find_state(outer) == universal_folder(tag_folder(run_dir))
    path = outer / "latest_universal"
    intact = path.read_bytes()
    for place in range(len(intact)):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1 << seed]) + intact[place + 1 :])
        with pytest.raises(RefusedError, match="latest_universal names"):
            find_state(outer)


def update_records(folder: Path, *names: str) -> None:
    """Write the current hashes of files to the manifest."""
    manifest = read_manifest(folder)
    files = manifest.files | {name: describe_file(folder / name) for name in names}
    write_manifest(manifest.model_copy(update={"files": files}), folder)


def test_shards_of_two_precisions_in_one_tag_are_refused(run_dir: Path) -> None:
    tag = tag_folder(run_dir)
    shutil.rmtree(universal_folder(tag).parent)
    other = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shutil.copyfile(tag / SHARDED[-2], tag / other)
    with pytest.raises(RefusedError, match=f"{other}: not in the manifest"):
        verify_state(open_state(tag))
    update_records(tag, other)
    with pytest.raises(RefusedError, match="saved by 2 ranks, but its manifest lists 3 shards"):
        open_universal(tag, SINGLE_RANK)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mp_rank_00_model_states.pt", "global_steps is 6, but the manifest says 5"),
        ("zero/first.weight/step.pt", "holds step 6, but the manifest says 5"),
    ],
)
def test_counters_of_another_state_are_refused(run_dir: Path, name: str, text: str) -> None:
    folder, other = (universal_folder(tag_folder(run_dir, step)) for step in (5, 6))
    shutil.copyfile(other / name, folder / name)
    update_records(folder, name)
    with pytest.raises(RefusedError, match=text):
        open_universal(folder, SINGLE_RANK)


def test_killed_conversion_is_repeated_from_the_start(run_dir: Path) -> None:
    tag = tag_folder(run_dir)
    done = universal_folder(tag).parent
    half = done.with_name(done.name + ".tmp")
    done.rename(half)
    (half / tag.name / "zero" / "first.weight" / "fp32.pt").write_bytes(b"half")
    state = open_universal(tag, SINGLE_RANK)
    verify_state(open_state(state.folder))
    remove_stale(run_dir)
    assert not half.exists()


def test_brackets_in_the_path_do_not_matter(saved: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(saved, tmp_path / "run[1]*"))
    shutil.rmtree(universal_folder(tag_folder(run_dir)).parent)
    state = open_universal(tag_folder(run_dir), SINGLE_RANK)
    assert verify_state(open_state(state.folder)) > 40
