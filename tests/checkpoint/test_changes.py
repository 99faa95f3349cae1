"""Differences from the saved run: only named ones are allowed."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from aqtopo.checkpoint.changes import Allowed, check_changes, config_changes, match_names, parse_renames
from aqtopo.checkpoint.manifest import GroupInfo, Manifest, TensorInfo
from aqtopo.config import RunConfig
from aqtopo.refusal import RefusedError

TinyConfig = Callable[..., RunConfig]


def changed(tiny_config: TinyConfig, **changes: Any) -> list[str]:
    saved, now = (json.loads(config.to_json()) for config in (tiny_config(), tiny_config(**changes)))
    return [change.path for change in config_changes(saved, now)]


def test_where_things_lie_and_what_is_printed_may_change(tiny_config: TinyConfig) -> None:
    assert not changed(
        tiny_config,
        name="other",
        data={"workers": 1, "prefetch": 3},
        training={"run_dir": "elsewhere", "log_every": 5},
        checkpoint={"keep_best": 9, "every_steps": 4},
        deepspeed={"steps_per_print": 3},
    )


def test_what_decides_the_training_is_listed(tiny_config: TinyConfig) -> None:
    assert changed(tiny_config, optimizer={"base_lr": 2e-3}) == ["optimizer.base_lr"]
    assert changed(tiny_config, deepspeed={"gradient_clipping": 2.0}) == ["deepspeed.gradient_clipping"]
    assert changed(tiny_config, deepspeed={"bf16": {"enabled": True}}) == ["deepspeed.bf16.enabled"]
    groups = [
        {"name": "all", "lr_multiplier": 1.0, "parameters": ["*"]},
    ]
    paths = changed(tiny_config, optimizer={"base_lr": 1e-3, "groups": groups})
    assert "optimizer.groups.all.lr_multiplier" in paths
    assert "optimizer.groups.order" in paths


@pytest.mark.parametrize(
    ("before", "now", "path"),
    [
        ({"eta_min": 1e-6}, {}, "schedule.eta_min"),
        ({"interval": "step", "warmup_steps": 5}, {"interval": "step"}, "schedule.warmup_steps"),
        ({"interval": "step"}, {"interval": "epoch"}, "schedule.interval"),
    ],
)
def test_removed_or_changed_schedule_is_refused(
    tiny_config: TinyConfig, before: dict[str, Any], now: dict[str, Any], path: str
) -> None:
    saved, changed = (json.loads(tiny_config(schedule=how).to_json()) for how in (before, now))
    changes = config_changes(saved, changed)
    with pytest.raises(RefusedError, match=f"--allow-change {path}"):
        check_changes(changes, Allowed())
    allowed = Allowed(settings=(path,))
    check_changes(changes, allowed)
    assert allowed.allows_change_in("schedule")  # what it decides, the rates, may then differ too
    assert not allowed.allows_change_in("model")


def test_refusal_shows_both_values_and_what_to_type(tiny_config: TinyConfig) -> None:
    saved, now = (
        json.loads(config.to_json()) for config in (tiny_config(), tiny_config(optimizer={"base_lr": 2e-3}))
    )
    changes = config_changes(saved, now)
    with pytest.raises(
        RefusedError, match=r"base_lr: saved 0.001, now 0.002\n.*--allow-change optimizer.base_lr"
    ):
        check_changes(changes, Allowed())
    for pattern in ("optimizer.base_lr", "optimizer", "opt*"):
        check_changes(changes, Allowed(settings=(pattern,)))


def tensor(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name=name, shape=shape, dtype="float32")


def group(name: str, *tensors: TensorInfo) -> GroupInfo:
    return GroupInfo(name=name, hyperparameters={}, next_lr=None, parameters=tensors)


def matched(
    saved: list[GroupInfo],
    now: list[GroupInfo],
    allowed: Allowed | None = None,
    saved_others: tuple[TensorInfo, ...] = (),
    others: tuple[TensorInfo, ...] = (),
) -> dict[str, str | None]:
    manifest = Manifest.model_construct(groups=tuple(saved), other_tensors=saved_others)
    return match_names(manifest, tuple(now), others, allowed or Allowed())


A, B = tensor("a", 6, 10), tensor("b", 6, 10)


def test_order_of_groups_and_parameters_does_not_matter() -> None:
    saved, now = (
        [group("x", A, B), group("y", tensor("c", 3))],
        [group("y", tensor("c", 3)), group("x", B, A)],
    )
    assert matched(saved, now) == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize("shape", [(10, 6), (60,), (6, 11)])
def test_another_shape_is_refused_also_with_as_many_elements(shape: tuple[int, ...]) -> None:
    with pytest.raises(RefusedError, match=r"a: shape .* saved a has \[6, 10\]"):
        matched([group("x", A)], [group("x", tensor("a", *shape))])


def test_missing_and_unexpected_are_refused_until_named() -> None:
    saved, now = [group("x", A)], [group("x", B)]
    with pytest.raises(RefusedError, match=r"(?s)b .*--allow-missing b.*a .*--allow-unexpected a"):
        matched(saved, now)
    assert matched(saved, now, Allowed(missing=("b",), unexpected=("a",))) == {"b": None}


def test_renamed_tensor_is_found() -> None:
    assert matched([group("x", A)], [group("x", B)], Allowed(renames={"a": "b"})) == {"b": "a"}
    with pytest.raises(RefusedError, match="the saved state has no z"):
        matched([group("x", A)], [group("x", A)], Allowed(renames={"z": "a"}))


def test_other_group_is_refused_until_allowed() -> None:
    saved, now = [group("x", A), group("y", B)], [group("x", A, B)]
    with pytest.raises(RefusedError, match="b: in group x, saved in group y"):
        matched(saved, now)
    assert matched(saved, now, Allowed(settings=("optimizer.groups",))) == {"a": "a", "b": "b"}


def test_frozen_against_trained_is_refused() -> None:
    with pytest.raises(
        RefusedError, match="b: frozen or a buffer in this run, but trained in the saved state"
    ):
        matched([group("x", A, B)], [group("x", A)], others=(B,))


def test_renames_are_read_and_refused() -> None:
    assert parse_renames(["a=b", "c=d"]) == {"a": "b", "c": "d"}
    with pytest.raises(ValueError, match="write OLD=NEW"):
        parse_renames(["ab"])
