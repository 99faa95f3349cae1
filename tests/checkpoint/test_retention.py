"""Retention of saved states; incomplete folders are never used as saved states."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from aqtopo.checkpoint.tags import (
    CHECKPOINTS,
    Tag,
    best_tag,
    check_pointer,
    find_tag,
    last_tag,
    list_tags,
    next_tag,
    prune,
    read_lock,
    record_name,
    remove_stale,
    repair_pointer,
    update_pointer,
    write_tag,
)
from aqtopo.checkpoint.universal import universal_folder
from aqtopo.config import CheckpointConfig
from aqtopo.refusal import RefusedError


def make(run_dir: Path, losses: Sequence[float | None]) -> list[Tag]:
    """Saved states of steps 1, 2, ..., without pointer."""
    return [save(run_dir, Tag(0, step, step, loss, 1.0)) for step, loss in enumerate(losses, start=1)]


def save(run_dir: Path, tag: Tag) -> Tag:
    """Make the files and names of a saved state as the saver does."""
    tag = next_tag(tag, run_dir)
    tag.folder(run_dir).mkdir(parents=True)
    record_name(tag, run_dir)
    write_tag(tag, run_dir)
    return tag


def steps(run_dir: Path) -> list[int]:
    return [tag.step for tag in list_tags(run_dir)]


def test_best_three_last_and_periodic_states_are_kept(tmp_path: Path) -> None:
    make(tmp_path, [0.5, 0.1, None, 0.2, None, 0.3, 0.9, None, None])
    prune(tmp_path, CheckpointConfig(every_steps=4, keep_every_steps=8))
    assert steps(tmp_path) == [2, 4, 6, 8, 9]


def test_losses_of_other_data_are_not_compared(tmp_path: Path) -> None:
    make(tmp_path, [0.1, 0.2, 0.3])
    for step, loss in ((4, None), (5, 0.9), (6, 0.7), (7, 0.8)):
        save(tmp_path, Tag(0, step, step, loss, 1.0, data=1))
        best = best_tag(tmp_path)
        assert best is not None
        assert best.step == {4: 1, 5: 5, 6: 6, 7: 6}[step]
        prune(tmp_path, CheckpointConfig(keep_best=2))
    assert steps(tmp_path) == [1, 2, 6, 7]
    save(tmp_path, Tag(0, 8, 8, 0.15, 1.0))  # on the first data again
    assert find_tag(tmp_path, "best").step == 1


def test_state_that_the_pointer_names_is_kept(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None, None])
    update_pointer(tags[0], tmp_path)
    prune(tmp_path, CheckpointConfig())
    assert steps(tmp_path) == [1, 3]


def test_every_steps_alone_keeps_only_the_last_state(tmp_path: Path) -> None:
    make(tmp_path, [None] * 4)
    prune(tmp_path, CheckpointConfig(every_steps=2))
    assert steps(tmp_path) == [4]


def test_state_that_cannot_be_removed_gives_a_warning_and_the_others_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = make(tmp_path, [None] * 4)
    rename = Path.rename

    def refuse_first(path: Path, target: Path) -> Path:
        if path.name == tags[0].name:
            raise OSError("Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_first)
    with pytest.warns(UserWarning, match=f"{tags[0].name} cannot be removed: .*busy"):
        prune(tmp_path, CheckpointConfig())
    assert steps(tmp_path) == [1, 4]


def test_name_of_a_removed_state_is_never_used_again(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    prune(tmp_path, CheckpointConfig())
    again = save(tmp_path, Tag(0, 1, 1, None, 1.0))
    assert again.name == f"{tags[0].name}-take2"
    assert last_tag(tmp_path) == again


def test_only_state_is_kept(tmp_path: Path) -> None:
    make(tmp_path, [None])
    prune(tmp_path, CheckpointConfig())
    assert steps(tmp_path) == [1]


def test_state_with_a_read_lock_is_kept(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    with read_lock(tags[0].folder(tmp_path)):
        prune(tmp_path, CheckpointConfig())
        assert steps(tmp_path) == [1, 2]
    prune(tmp_path, CheckpointConfig())
    assert steps(tmp_path) == [2]


def test_state_is_kept_while_its_universal_form_is_read(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    inner = universal_folder(tags[0].folder(tmp_path))
    inner.mkdir(parents=True)
    with read_lock(inner):
        prune(tmp_path, CheckpointConfig())
        assert steps(tmp_path) == [1, 2]
        assert inner.is_dir()
    prune(tmp_path, CheckpointConfig())
    assert steps(tmp_path) == [2]


def test_universal_form_is_removed_with_its_state(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    universal = tags[0].folder(tmp_path).with_name(tags[0].name + ".universal")
    universal.mkdir()
    prune(tmp_path, CheckpointConfig())
    assert not universal.exists()


def test_remove_stale_removes_leftovers_only(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    folder = tmp_path / CHECKPOINTS
    lost = "epoch09-step000099-val0.1-take2"
    leftovers = ("", ".universal", ".01234567", ".universal.01234567")
    others = ("a.tmp", "b.discarded", "c.universal", "thesis.tmp", f"old-{lost}.tmp", f"{lost}.note.tmp")
    kept = {*others, f"{tags[0].name}.universal"}
    stale = {f"{lost}{middle}{end}" for middle in leftovers for end in (".tmp", ".discarded")}
    for name in (*kept, *stale, f"{lost}.universal"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("", encoding="utf-8")
    (folder / "latest.01234567.tmp").write_text("half", encoding="utf-8")
    remove_stale(tmp_path)
    assert {path.name for path in folder.iterdir()} == kept | {tags[0].name, tags[1].name, "history"}


def test_remove_stale_follows_a_link_to_the_checkpoints_but_none_below(tmp_path: Path) -> None:
    make(tmp_path / "disk", [None])
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").touch()
    (tmp_path / "run").mkdir()
    folder = tmp_path / "run" / CHECKPOINTS
    folder.symlink_to(tmp_path / "disk" / CHECKPOINTS)
    for name in ("epoch09-step000099.tmp", "epoch09-step000099.universal", "epoch09-step000098.discarded"):
        (folder / name).symlink_to(tmp_path / "victim")
    remove_stale(tmp_path / "run")
    assert {path.name for path in folder.iterdir()} == {"epoch00-step000001", "history"}
    assert (tmp_path / "victim" / "file").exists()


def test_pruning_removes_a_link_but_not_what_it_leads_to(tmp_path: Path) -> None:
    tag, *_ = make(tmp_path, [None, None])
    folder, elsewhere = tag.folder(tmp_path), tmp_path / tag.name
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    prune(tmp_path, CheckpointConfig())
    assert steps(tmp_path) == [2]
    assert not folder.is_symlink()
    assert (elsewhere / "state.json").is_file()


def test_leftovers_are_not_listed(tmp_path: Path) -> None:
    tag = make(tmp_path, [None])[0]
    for suffix in (".tmp", ".discarded"):
        other = tag.folder(tmp_path).with_name(f"epoch09-step000099{suffix}")
        other.mkdir()
        write_tag(tag, tmp_path, other)
    assert list_tags(tmp_path) == [tag]


@pytest.mark.parametrize("text", ["", "epoch00-step000009\n", "epoch00-step00000\n", "\x00"])
def test_pointer_to_no_saved_state_is_refused(tmp_path: Path, text: str) -> None:
    tag = make(tmp_path, [None])[0]
    update_pointer(tag, tmp_path)
    check_pointer(tmp_path)
    (tmp_path / CHECKPOINTS / "latest").write_text(text, encoding="utf-8")
    with pytest.raises(RefusedError, match=r"latest names .*--resume epoch00-step000001"):
        check_pointer(tmp_path)


@pytest.mark.parametrize("went_back", [False, True])
def test_state_committed_before_a_kill_without_pointer_update_is_the_last(
    tmp_path: Path, went_back: bool
) -> None:
    before = make(tmp_path, [None, None, None])[-1]
    update_pointer(before, tmp_path)
    last = save(tmp_path, Tag(0, 2 if went_back else 4, 2, None, 1.0))
    check_pointer(tmp_path)
    assert last_tag(tmp_path) == last
    repair_pointer(tmp_path)
    assert (tmp_path / CHECKPOINTS / "latest").read_text(encoding="utf-8") == f"{last.name}\n"


def test_pointer_that_is_more_than_one_state_behind_is_refused(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None, None])
    update_pointer(tags[0], tmp_path)
    with pytest.raises(RefusedError, match="'epoch00-step000001', which is not the state saved last"):
        check_pointer(tmp_path)


def test_no_flipped_bit_in_the_pointer_changes_the_state_saved_last(tmp_path: Path) -> None:
    tags = make(tmp_path, [None] * 8)
    update_pointer(tags[-1], tmp_path)
    pointer = tmp_path / CHECKPOINTS / "latest"
    intact = pointer.read_bytes()
    for place in range(8 * len(intact)):
        data = bytearray(intact)
        data[place // 8] ^= 1 << (place % 8)
        pointer.write_bytes(data)
        assert last_tag(tmp_path) == tags[-1]
        if data != f"{tags[-2].name}\n".encode():  # where a kill may leave it
            with pytest.raises(RefusedError, match="latest names"):
                check_pointer(tmp_path)


def test_missing_pointer_is_accepted(tmp_path: Path) -> None:
    tags = make(tmp_path, [None, None])
    check_pointer(tmp_path)
    assert last_tag(tmp_path) == tags[-1]
