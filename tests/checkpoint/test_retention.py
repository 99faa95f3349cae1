"""What is kept, and that nothing half removed or half written is ever taken for a saved state."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from aqtopo.checkpoint.retention import prune, reading, sweep
from aqtopo.checkpoint.tags import CHECKPOINTS, Tag, check_pointer, last_tag, list_tags, point_to, write_state
from aqtopo.config import CheckpointConfig
from aqtopo.refusal import RefusedError


def make(run_dir: Path, losses: Sequence[float | None]) -> list[Tag]:
    tags = [Tag(0, step, step, loss, 1.0) for step, loss in enumerate(losses, start=1)]
    for tag in tags:
        tag.folder(run_dir).mkdir(parents=True)
        write_state(tag, run_dir)
    return tags


def steps(run_dir: Path) -> list[int]:
    return [tag.step for tag in list_tags(run_dir)]


def test_best_three_last_and_every_so_many_are_kept(tmp_path: Path) -> None:
    make(tmp_path, [0.5, 0.1, None, 0.2, None, 0.3, 0.9, None, None])
    prune(tmp_path, CheckpointConfig(every_steps=8))
    assert steps(tmp_path) == [2, 4, 6, 8, 9]


def test_state_that_the_pointer_names_is_kept(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None, None])
    point_to(tags[0], tmp_path)
    prune(tmp_path, CheckpointConfig())
    assert steps(tmp_path) == [1, 3]
    assert last_tag(tmp_path) == tags[0]


def test_only_state_is_kept(tmp_path: Path) -> None:
    make(tmp_path, [None])
    prune(tmp_path, CheckpointConfig())
    assert steps(tmp_path) == [1]


def test_state_that_is_being_read_is_kept_until_it_is_not(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    with reading(tags[0].folder(tmp_path)):
        prune(tmp_path, CheckpointConfig())
        assert steps(tmp_path) == [1, 2]
    prune(tmp_path, CheckpointConfig())
    assert steps(tmp_path) == [2]


def test_removing_takes_the_universal_form_along(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    universal = tags[0].folder(tmp_path).with_name(tags[0].name + ".universal")
    universal.mkdir()
    prune(tmp_path, CheckpointConfig())
    assert not universal.exists()


def test_sweep_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    folder = tmp_path / CHECKPOINTS
    for name in ("a.tmp", "b.discarded", "c.universal", f"{tags[0].name}.universal"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("")
    (folder / "latest.tmp").write_text("half")
    sweep(tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        tags[0].name,
        f"{tags[0].name}.universal",
        tags[1].name,
    }


def test_leftovers_are_no_saved_states(tmp_path: Path) -> None:
    tag = make(tmp_path, [None])[0]
    for suffix in (".tmp", ".discarded"):
        other = tag.folder(tmp_path).with_name(f"epoch09-step000099{suffix}")
        other.mkdir()
        write_state(tag, tmp_path, other)
    assert list_tags(tmp_path) == [tag]


@pytest.mark.parametrize("text", ["", "epoch00-step000009\n", "epoch00-step00000\n", "\x00"])
def test_pointer_to_nothing_is_refused_by_name(tmp_path: Path, text: str) -> None:
    tag = make(tmp_path, [None])[0]
    point_to(tag, tmp_path)
    check_pointer(tmp_path)
    (tmp_path / CHECKPOINTS / "latest").write_text(text)
    with pytest.raises(RefusedError, match=r"latest names .*--resume epoch00-step000001"):
        check_pointer(tmp_path)


def test_missing_pointer_is_no_trouble(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    check_pointer(tmp_path)
    assert last_tag(tmp_path) == tags[-1]
