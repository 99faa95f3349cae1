"""Groups, names and places of a Lightning file: matched one to one, or refused with the candidates."""

from pathlib import Path
from typing import Any

import pytest

from aqtopo.checkpoint.manifest import GroupInfo, TensorInfo
from aqtopo.lightning.match import ParameterOrder, match_groups, match_parameters, rename
from aqtopo.refusal import RefusedError


def info(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name=name, shape=shape, dtype="float32")


def group(name: str, lr: float, *tensors: TensorInfo) -> GroupInfo:
    return GroupInfo(name=name, hyperparameters={}, next_lr=lr, parameters=tensors)


A, B = group("a", 1.0, info("x", 3)), group("b", 2.0, info("y", 3))


def saved(*rates: float) -> list[dict[str, Any]]:
    """Groups of the file, of one parameter of three elements each."""
    return [{"params": [number], "lr": lr} for number, lr in enumerate(rates)]


def test_groups_are_matched_by_shapes_then_by_rate() -> None:
    shapes = {0: (3,), 1: (3,), 2: (4,)}
    groups = [A, B, group("c", 1.0, info("z", 4))]
    assert match_groups(saved(2.0, 1.0, 1.0), shapes, groups) == {"a": 1, "b": 0, "c": 2}


def test_groups_with_names_are_matched_by_name() -> None:
    theirs = [own | {"name": name} for own, name in zip(saved(1.0, 2.0), "ba", strict=True)]
    assert match_groups(theirs, {0: (3,), 1: (3,)}, [A, B]) == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((1.0, 1.0), r"a \(1 parameters\) matches groups \[0, 1\] of the file"),
        ((1.0, 5.0), r"b \(1 parameters\) matches no group of the file"),
        ((1.0, 2.0, 2.0), r"b \(1 parameters\) matches groups \[1, 2\] of the file"),
        ((1.0, 2.0, 9.0), r"group 2 of the file matches no group of this run"),
        ((1.0,), r"matches groups \[0\] of the file"),
    ],
)
def test_groups_that_do_not_match_one_to_one_are_refused(rates: tuple[float, ...], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        match_groups(saved(*rates), {0: (3,), 1: (3,), 2: (3,)}, [A, B])


def test_two_groups_of_the_run_never_match_the_same_group_of_the_file() -> None:
    same_rate = [A, group("b", 1.0, info("y", 3))]
    with pytest.raises(RefusedError, match=r"(?s)a .* groups \[0\].*b .* groups \[0\].*group 1 of"):
        match_groups(saved(1.0, 2.0), {0: (3,), 1: (3,)}, same_rate)


def test_parameters_are_matched_by_the_names_in_the_optimizer() -> None:
    theirs = {"params": [5, 6], "param_names": ["model.b", "model.a"]}
    listed = [info("a", 3), info("b", 3)]
    assert match_parameters("g", theirs, {5: (3,), 6: (3,)}, listed, []) == {"b": 5, "a": 6}
    theirs["param_names"] = ["model.b", "model.c"]
    with pytest.raises(RefusedError, match=r"(?s)only the file has c.*only this run has a"):
        match_parameters("g", theirs, {5: (3,), 6: (3,)}, listed, [])


def test_order_with_wrong_shapes_is_refused_with_the_candidates() -> None:
    listed = [info("a", 3), info("b", 4)]
    with pytest.raises(RefusedError, match=r"(?s)a \[3\]: parameter 0 .* candidates \[1\].*--order FILE"):
        match_parameters("g", {"params": [0, 1]}, {0: (4,), 1: (3,)}, listed, [])
    with pytest.raises(RefusedError, match="another number of parameters"):
        match_parameters("g", {"params": [0]}, {0: (4,)}, listed, [])


def test_rename_removes_prefixes_and_applies_rules() -> None:
    names = ["model.module.patch_embed.proj_weights", "net.blocks.0.norm1.weight", "old.head.0.bias"]
    assert list(rename([*names, "model.climax.pos_embed"], [(r"^old\.", "")]).values()) == [
        "token_embeds.proj_weights",
        "blocks.0.norm1.weight",
        "head.0.bias",
        "pos_embed",
    ]
    with pytest.raises(RefusedError, match="get the same name"):
        rename(["model.a", "a"], [])


def test_stated_order_is_read_and_must_name_every_parameter(tmp_path: Path) -> None:
    (tmp_path / "order").write_text("model.y\nmodel.x\n", encoding="utf-8")
    assert ParameterOrder.parse(str(tmp_path / "order")).positions([], [A, B], []) == {"y": 0, "x": 1}
    assert ParameterOrder.parse("named_parameters").positions(["x", "y"], [A, B], []) == {"x": 0, "y": 1}
    assert not ParameterOrder.parse(None).stated
    (tmp_path / "order").write_text("x z", encoding="utf-8")
    with pytest.raises(RefusedError, match=r"(?s)it lacks y.*does not train z"):
        ParameterOrder.parse(str(tmp_path / "order")).positions([], [A, B], [])
    with pytest.raises(ValueError, match="there is no such file"):
        ParameterOrder.parse(str(tmp_path / "absent"))


def test_an_order_may_begin_with_a_byte_order_mark_and_must_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "order").write_bytes(b"\xef\xbb\xbfhead.0.weight\r\nhead.0.bias\r\n")
    assert ParameterOrder.parse(str(tmp_path / "order")).names == ("head.0.weight", "head.0.bias")
    (tmp_path / "order").write_bytes("head".encode("utf-16"))
    with pytest.raises(ValueError, match=r"--order .*order: byte 0 is not UTF-8"):
        ParameterOrder.parse(str(tmp_path / "order"))
