"""What DeepSpeed's own resume gets wrong without a word, one test each: here it is refused or right.

All toy runs are made by one process that forks ranks; each test looks at what came out of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import Ended, Job, run_jobs_in, tag_folder
from .test_restore import EXACT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("silent")]

DYNAMIC = {"initial_scale_power": 6, "loss_scale_window": 3}

SAVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied": True},
    "extra": {"extra": True},
    "wide": {"width": 12},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "scaling": DYNAMIC},
    "stage1": {"zero": {"stage": 1}},
}

RESUMES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "reordered groups": (2, "plain", {"groups": "reordered"}),
    "tied": (3, "tied", {"tied": True}),
    "untied": (1, "tied", {}),
    "newly tied": (1, "plain", {"tied": True}),
    "extra in the checkpoint": (1, "extra", {}),
    "extra dropped on purpose": (2, "extra", {"allow": {"unexpected": ["extra"]}}),
    "missing in the checkpoint": (1, "plain", {"extra": True}),
    "missing on purpose": (2, "plain", {"extra": True, "allow": {"missing": ["extra"]}}),
    "renamed": (2, "extra", {"allow": {"renames": {"extra": "unused"}, "unexpected": ["unused"]}}),
    "other shapes": (1, "wide", {}),
    "bf16": (3, "bf16", {"precision": "bf16"}),
    "bf16 to fp32": (1, "bf16", {"precision": "fp32"}),
    "fp32 to bf16": (2, "plain", {"precision": "bf16"}),
    "fp16": (3, "fp16", {"precision": "fp16", "scaling": DYNAMIC}),
    "fp16 to static": (2, "fp16", {"precision": "fp16", "scaling": {"loss_scale": 8.0}}),
    "fp16 to bf16": (2, "fp16", {"precision": "bf16"}),
    "bf16 to fp16": (1, "bf16", {"precision": "fp16", "scaling": DYNAMIC}),
    "stage 1 to 2": (1, "stage1", {}),
}

REFUSED_ENGINES: dict[str, dict[str, Any]] = {
    "round_robin_gradients": {"zero": {"round_robin_gradients": True}},
    "amsgrad": {"amsgrad": True},
    "optimizer SGD": {"optimizer": "SGD"},
    "ZeRO stage 0": {"zero": {"stage": 0}},
}


@dataclass(frozen=True)
class Outcome:
    """How a resume ended, what it came to, and what had been saved."""

    ended: Ended
    resumed: dict[str, Any]
    truth: dict[str, Any]

    @property
    def ok(self) -> bool:
        return not any(self.ended.codes)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("silent")
    jobs = [Job(2, "save_toy", {"folder": str(folder / name)} | kind) for name, kind in SAVES.items()]
    for number, (world, source, kind) in enumerate(RESUMES.values()):
        sources = {"": str(tag_folder(folder / source))}
        jobs.append(
            Job(world, "resume_toy", {"sources": sources, "out": str(folder / f"{number}.pt")} | kind)
        )
    jobs += [Job(1, "check_toy", kind) for kind in REFUSED_ENGINES.values()]
    plain = str(tag_folder(folder / "plain"))
    jobs.append(Job(1, "load_with_deepspeed", {"source": plain, "out": str(folder / "deepspeed.pt")}))
    jobs.append(Job(1, "convert_with_deepspeed", {"source": plain, "out": str(folder / "converted")}))
    ended = run_jobs_in(folder / "jobs", jobs)
    assert not any(code for save in ended[: len(SAVES)] for code in save.codes), ended[0].output
    found = {}
    for number, (name, (_, source, _)) in enumerate(RESUMES.items()):
        path = folder / f"{number}.pt"
        resumed = torch.load(path)[""] if path.is_file() else {}
        truth = torch.load(folder / source / "truth.pt")
        found[name] = Outcome(ended[len(SAVES) + number], resumed, truth)
    for name, end in zip(REFUSED_ENGINES, ended[len(SAVES) + len(RESUMES) :], strict=False):
        found[name] = Outcome(end, {}, {})
    truth = torch.load(folder / "plain" / "truth.pt")
    loaded = torch.load(folder / "deepspeed.pt") if (folder / "deepspeed.pt").is_file() else {}
    found["by DeepSpeed"] = Outcome(ended[-2], {"state": loaded}, truth)
    found["converted by DeepSpeed"] = Outcome(ended[-1], {"folder": folder}, truth)
    return found


def same(
    outcome: Outcome, *skip: str, kinds: tuple[str, ...] = ("fp32", "exp_avg", "exp_avg_sq", "step")
) -> None:
    assert outcome.ok, outcome.ended.output
    compared = 0
    for name, tensor in outcome.truth["state"].items():
        if name.split()[0] in kinds and name.split()[1] not in skip:
            torch.testing.assert_close(outcome.resumed["state"][name], tensor, **EXACT, msg=name)
            compared += 1
    assert compared > 20


def refused(outcome: Outcome, *texts: str) -> None:
    assert any(outcome.ended.codes)
    assert "RefusedError" in outcome.ended.text
    for text in texts:
        assert text in outcome.ended.text


def test_groups_in_another_order_are_restored_by_name(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["reordered groups"]
    same(outcome)
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=1e-5)


def test_buffers_and_frozen_parameters_are_restored(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["reordered groups"]
    same(outcome, kinds=("module", "fp32"))
    assert torch.all(outcome.resumed["state"]["module norm.running_mean"] == 0.25)


def test_tied_parameters_are_restored_and_stay_tied(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["tied"]
    same(outcome)
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=1e-5)


def test_untying_and_tying_are_refused_by_name(outcomes: dict[str, Outcome]) -> None:
    refused(outcomes["untied"], "third.weight [10, 10]: not in the saved state")
    refused(outcomes["newly tied"], "third.weight [10, 10]: saved, but not in this run")


def test_extra_parameter_in_the_checkpoint_is_refused(outcomes: dict[str, Outcome]) -> None:
    refused(
        outcomes["extra in the checkpoint"],
        "extra [10]: saved, but not in this run (--allow-unexpected extra)",
    )
    same(outcomes["extra dropped on purpose"], "extra")


def test_missing_parameter_is_refused_and_starts_fresh_on_purpose(outcomes: dict[str, Outcome]) -> None:
    refused(
        outcomes["missing in the checkpoint"], "extra [10]: not in the saved state (--allow-missing extra)"
    )
    outcome = outcomes["missing on purpose"]
    same(outcome)
    assert not outcome.resumed["state"]["exp_avg extra"].any()


def test_rename_to_another_shape_is_refused(outcomes: dict[str, Outcome]) -> None:
    refused(outcomes["renamed"], "unused: shape [3], saved extra has [10]")


def test_other_shapes_are_refused(outcomes: dict[str, Outcome]) -> None:
    refused(outcomes["other shapes"], "first.weight: shape [10, 6], saved first.weight has [12, 6]")


def test_bf16_is_resumed_at_another_world_size(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["bf16"]
    same(outcome)
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=2e-2)


@pytest.mark.parametrize("change", ["bf16 to fp32", "fp32 to bf16"])
def test_precision_change_keeps_master_weights_and_takes_no_loss_scale(
    outcomes: dict[str, Outcome], change: str
) -> None:
    outcome = outcomes[change]
    # bf16 weights as the forward used them come back in fp32; ZeRO's fp32 masters are what counts
    same(outcome)
    assert outcome.resumed["scale"] == 1.0


def test_fp16_goes_on_with_its_loss_scale(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["fp16"]
    same(outcome)
    scaler = outcome.truth["scaler"]
    assert scaler["cur_scale"] > 2**6  # it has grown since the start
    assert outcome.resumed["scaler"] == scaler
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=2e-2)


def test_other_precision_or_scaling_starts_with_the_configurations_scale(
    outcomes: dict[str, Outcome],
) -> None:
    for change, scale in {"fp16 to static": 8.0, "fp16 to bf16": 1.0, "bf16 to fp16": 2.0**6}.items():
        outcome = outcomes[change]
        same(outcome)
        assert outcome.resumed["scale"] == scale
        assert len(set(outcome.resumed["losses"])) == len(outcome.resumed["losses"])  # no step was skipped


def test_stage_1_is_resumed(outcomes: dict[str, Outcome]) -> None:
    same(outcomes["stage 1 to 2"])


@pytest.mark.parametrize("reason", REFUSED_ENGINES)
def test_engine_that_cannot_be_resumed_is_refused(outcomes: dict[str, Outcome], reason: str) -> None:
    refused(outcomes[reason], reason)


def test_ranks_that_own_nothing_of_a_group_are_no_trouble(outcomes: dict[str, Outcome]) -> None:
    # the group `tiny` has one element: at W = 2 and 3 all ranks but the first own none of it
    for name in ("reordered groups", "bf16"):
        assert outcomes[name].resumed["state"]["exp_avg scale"].abs().item() > 0


def test_deepspeed_itself_loads_what_was_converted(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["by DeepSpeed"]
    same(outcome)


def test_conversion_agrees_with_deepspeeds_own(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["converted by DeepSpeed"]
    assert outcome.ok, outcome.ended.output
    folder: Path = outcome.resumed["folder"] / "converted" / "zero"
    for name, tensor in outcome.truth["state"].items():
        kind, parameter = name.split()
        if kind in ("fp32", "exp_avg", "exp_avg_sq"):
            theirs = torch.load(folder / parameter / f"{kind}.pt")["param"]
            torch.testing.assert_close(theirs.reshape(tensor.shape), tensor, **EXACT, msg=name)
