"""One flipped bit, a truncation, a missing or a swapped file, in each kind of file: refused, by its name."""

import random
import shutil
from pathlib import Path

import pytest

from aqtopo.checkpoint.convert import open_universal
from aqtopo.checkpoint.inspection import open_state, verify_state
from aqtopo.checkpoint.ranks import ALONE
from aqtopo.checkpoint.universal import universal_folder
from aqtopo.refusal import RefusedError

from .conftest import Job, run_jobs_in
from .test_restore import tag_folder

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


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tags of a toy run on two ranks, at steps 5 and 6, with their universal forms."""
    folder = tmp_path_factory.mktemp("saved")
    jobs = [Job(2, "save_toy", {"folder": str(folder), "steps": steps}) for steps in (5, 6)]
    for ended in run_jobs_in(folder / "jobs", jobs):
        assert not any(ended.codes), ended.output
    for step in (5, 6):
        open_universal(tag_folder(folder, step), ALONE)
    return folder


@pytest.fixture
def run_dir(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


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
            open_universal(tag, ALONE)
        with pytest.raises(RefusedError, match=name):
            verify_state(open_state(tag))
        (tag / name).write_bytes(intact)
    verify_state(open_state(tag))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", UNIVERSAL)
def test_damaged_universal_form_is_refused_by_name(run_dir: Path, damage: object, name: str) -> None:
    tag = tag_folder(run_dir)
    path = universal_folder(tag) / name
    if damage is swap and name.endswith(("optimizer_state.pt",)):
        with pytest.raises(AssertionError):
            swap(path, 0)  # the same for both tags: nothing to swap
        return
    for seed in range(3 if damage is flip_a_bit else 1):
        intact = path.read_bytes()
        damage(path, seed)  # type: ignore[operator]
        with pytest.raises(RefusedError, match=Path(name).name):
            open_universal(tag, ALONE)
        path.write_bytes(intact)
    open_universal(tag, ALONE)


def test_whole_tag_under_another_name_is_refused(run_dir: Path) -> None:
    tag = tag_folder(run_dir)
    shutil.rmtree(tag)
    shutil.copytree(tag_folder(run_dir, 6), tag)
    with pytest.raises(RefusedError, match="is that of epoch00-step000006, but lies in epoch00-step000005"):
        open_universal(tag, ALONE)


def test_universal_form_of_another_state_is_refused(run_dir: Path) -> None:
    tag = tag_folder(run_dir)
    other = tag_folder(run_dir, 6)
    shutil.rmtree(universal_folder(tag).parent)
    shutil.copytree(universal_folder(other).parent, universal_folder(tag).parent)
    universal_folder(tag).with_name(other.name).rename(universal_folder(tag))
    with pytest.raises(RefusedError, match="lies in epoch00-step000005"):
        open_universal(tag, ALONE)


def test_conversion_starts_afresh_after_it_was_killed(run_dir: Path) -> None:
    tag = tag_folder(run_dir)
    done = universal_folder(tag).parent
    half = done.with_name(done.name + ".tmp")
    done.rename(half)
    (half / tag.name / "zero" / "first.weight" / "fp32.pt").write_bytes(b"half")
    state = open_universal(tag, ALONE)
    verify_state(open_state(state.folder))
    assert not half.exists()


def test_brackets_in_the_path_do_not_matter(saved: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(saved, tmp_path / "run[1]*"))
    shutil.rmtree(universal_folder(tag_folder(run_dir)).parent)
    state = open_universal(tag_folder(run_dir), ALONE)
    assert verify_state(open_state(state.folder)) > 40
