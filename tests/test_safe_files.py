"""Temporary paths, removal and writing leave the files of others as they are."""

import os
from pathlib import Path

import pytest

from aqtopo.safe_files import open_plain, remove, replacing, special_below


def test_a_file_replaces_another_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    for other in ("a.json.tmp", "a.json.partial"):
        (tmp_path / other).mkdir()
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "first"
    assert {each.name for each in tmp_path.iterdir()} == {"a.json", "a.json.tmp", "a.json.partial"}


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old", encoding="utf-8")

    def fail() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(each.name, each.read_text(encoding="utf-8")) for each in tmp_path.iterdir()] == [("a", "old")]


def test_a_link_is_removed_but_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for target in ("folder", "nothing"):
        (tmp_path / "link").symlink_to(tmp_path / target)
        remove(tmp_path / "link")
        remove(tmp_path / "link")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("mode", ["a", "w", "rb+"])
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_no_plain_file_is_not_opened(tmp_path: Path, kind: str, mode: str) -> None:
    path, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    if kind in ("link", "dangling"):
        path.symlink_to(other)
    if kind == "link":
        other.write_text("half a line", encoding="utf-8")
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl is a link, or no plain file"):
        open_plain(path, mode)
    assert other.exists() == (kind == "link")
    if kind == "link":
        assert other.read_text(encoding="utf-8") == "half a line"


def test_a_plain_file_is_opened(tmp_path: Path) -> None:
    for text in ("a", "b"):
        with open_plain(tmp_path / "file", "a", encoding="utf-8") as file:
            file.write(text)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "ab"


@pytest.mark.parametrize("place", ["pipe", "array/c/0/pipe", "linked/c/pipe", "group/array/linked/0/pipe"])
def test_a_special_file_is_found_anywhere(tmp_path: Path, place: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    store = tmp_path / "store"
    store.mkdir()
    (store / "linked").symlink_to(tmp_path / "elsewhere")
    (store / "loop").symlink_to(store)
    (store / "group" / "array").mkdir(parents=True)
    (store / "group" / "array" / "linked").symlink_to(tmp_path / "elsewhere")
    (store / "dangling").symlink_to(tmp_path / "nothing")
    (store / "itself").symlink_to(store / "itself")
    (store / "plain").touch()
    assert special_below(store) is None
    path = store / place
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    found = special_below(store)
    assert found is not None
    assert found.resolve() == path.resolve()
