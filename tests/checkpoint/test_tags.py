import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aqtopo.checkpoint.tags import Tag, best_tag, find_tag, last_tag, list_tags, read_tag, write_tag

TAGS = [Tag(0, 50, 50, 0.9, 1.1), Tag(3, 311, 50, 0.35574, 0.4), Tag(3, 348, 87, None, 0.3)]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for tag in TAGS:
        tag.folder(tmp_path).mkdir(parents=True)
        write_tag(tag, tmp_path)
    (tmp_path / "checkpoints" / "epoch09-step000999").mkdir()  # killed while saving: no description
    return tmp_path


def test_name_contains_epoch_step_and_loss() -> None:
    assert TAGS[1].name == "epoch03-step000311-val0.3557"
    assert TAGS[2].name == "epoch03-step000348"


def test_saved_states_are_listed_in_order_without_unfinished_ones(run_dir: Path) -> None:
    assert list_tags(run_dir) == TAGS


def test_best_is_the_lowest_validation_loss_and_last_the_most_steps(run_dir: Path) -> None:
    assert best_tag(run_dir) == find_tag(run_dir, "best") == TAGS[1]
    assert last_tag(run_dir) == find_tag(run_dir, "last") == TAGS[2]
    assert find_tag(run_dir, TAGS[0].name) == TAGS[0]


def test_unknown_tag_lists_the_known_ones(run_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"no saved state 'epoch07'; it has epoch00-step000050-val0.9000"):
        find_tag(run_dir, "epoch07")


def test_run_without_states_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none: train it first"):
        find_tag(tmp_path, "best")


def test_damaged_state_file_gives_a_warning_and_other_states_are_listed(run_dir: Path) -> None:
    path = TAGS[0].folder(run_dir) / "state.json"
    path.write_text('{"epoch": 1}', encoding="utf-8")
    with pytest.warns(UserWarning, match=r"state.json does not describe a saved state"):
        assert list_tags(run_dir) == TAGS[1:]


def test_flipped_bit_in_any_byte_of_a_state_file_is_found(run_dir: Path) -> None:
    path = TAGS[0].folder(run_dir) / "state.json"
    intact = path.read_bytes()
    for place in range(len(intact)):
        data = bytearray(intact)
        data[place] ^= 1 << (place % 8)
        path.write_bytes(data)
        with pytest.raises(ValueError, match="does not describe a saved state"):
            read_tag(path)


def test_copied_folder_is_not_listed(run_dir: Path) -> None:
    folder = TAGS[0].folder(run_dir)
    shutil.copytree(folder, folder.with_name("backup"))
    with pytest.warns(UserWarning, match=f"describes {folder.name}, but is in backup"):
        assert list_tags(run_dir) == TAGS


def test_state_pruned_during_listing_is_skipped(run_dir: Path) -> None:
    name = TAGS[0].name
    forth_and_back = (
        f"import os\nwhile True: os.rename('{name}', 'a.discarded'); os.rename('a.discarded', '{name}')"
    )
    pruning = subprocess.Popen([sys.executable, "-c", forth_and_back], cwd=run_dir / "checkpoints")
    try:
        found = {tuple(list_tags(run_dir)) for _ in range(3000)}
    finally:
        pruning.kill()
        pruning.wait()
    assert found <= {tuple(TAGS), tuple(TAGS[1:])}
