"""Silent failures and limits of DeepSpeed's own resume: aqtopo resumes correctly or refuses.

All toy runs are made by one process that forks ranks; each test looks at what came out of its own. Some
failures are shown elsewhere in this folder, or where a file is named:

| without a word in DeepSpeed 0.19.8 | shown by |
|---|---|
| groups restored by position | test_groups_in_another_order_are_restored_by_name |
| groups split or joined | test_changes: test_other_group_is_refused_until_allowed |
| round_robin_gradients | test_engine_that_cannot_be_resumed_is_refused |
| buffers and frozen parameters left out | test_buffers_and_frozen_parameters_are_restored |
| extra parameter in the checkpoint | test_extra_parameter_in_the_checkpoint_is_refused |
| a tensor's file missing | test_damage: |
| | test_damaged_universal_form_is_refused_by_name_and_converted_again_from_its_tag |
| as many elements in another shape | test_changes: test_another_shape_is_refused_also_with_as_many_elements |
| a rank's file missing | test_damage: test_damaged_tag_is_refused_by_name |
| `[` in the path | test_damage: test_brackets_in_the_path_do_not_matter |
| a tag reused across precisions | test_damage: test_shards_of_two_precisions_in_one_tag_are_refused |
| a tag's name reused | test_resume: test_names_are_not_reused_after_a_resume_from_an_older_tag |
| conversion killed over an old output | test_damage: test_counters_of_another_state_are_refused, |
| | test_killed_conversion_is_repeated_from_the_start |
| clipping, rates, decay, betas overruled | test_verify: |
| | test_difference_on_one_rank_is_refused_by_name_on_all; test_resume: |
| | test_refused_resume_ends_with_code_3_and_writes_nothing |
| loss scaler taken over | test_other_precision_or_scaling_starts_with_the_configurations_scale |
| a flipped byte | test_damage: test_damaged_tag_is_refused_by_name |
| scheduler dropped | test_changes: test_removed_or_changed_schedule_is_refused; |
| | test_verify: the rates that the optimizer holds |
| decay of parameters that are never used | test_never_used_parameter_continues_to_decay |
| random numbers and place in the data not saved | test_resume: |
| | test_losses_after_a_mid_epoch_resume_equal_the_uninterrupted_runs with dropout, and "seed allowed" |

| with an error in DeepSpeed | shown by |
|---|---|
| ranks that own nothing of a group | test_ranks_without_elements_of_a_group_are_restored; test_many_ranks |
| missing, renamed parameters | test_missing_parameter_is_refused_and_starts_fresh_on_purpose; test_changes |
| frozen and trained, tied and untied | test_changes: test_frozen_against_trained_is_refused; |
| | test_untying_and_tying_are_refused_by_name |
| output inside the input | test_commands: test_convert_into_the_state_itself_is_refused |
| SGD, amsgrad, ZeRO stages 0 and 3 | test_engine_that_cannot_be_resumed_is_refused |
| a wholly frozen group | tests/training/test_engine.py: test_wholly_frozen_group_is_named |
| PyTorch's step and DeepSpeed's | test_optimizers |
| killed while saving | test_commit |
| planted pickles | test_planted |
"""

import re
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
    "ZeRO stage 3": {"zero": {"stage": 3}},
}


@dataclass(frozen=True)
class Outcome:
    """Exit codes of a resume, the resumed state and the saved state."""

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


def assert_same(
    outcome: Outcome, *skip: str, kinds: tuple[str, ...] = ("fp32", "exp_avg", "exp_avg_sq", "step")
) -> None:
    assert outcome.ok, outcome.ended.output
    compared = 0
    for name, tensor in outcome.truth["state"].items():
        if name.split()[0] in kinds and name.split()[1] not in skip:
            torch.testing.assert_close(outcome.resumed["state"][name], tensor, **EXACT, msg=name)
            compared += 1
    assert compared > 20


def assert_refused(outcome: Outcome, *texts: str) -> None:
    assert any(outcome.ended.codes)
    assert "RefusedError" in outcome.ended.text
    for text in texts:
        assert text in outcome.ended.text


def test_every_failure_is_shown_by_tests_that_exist() -> None:
    named = set(re.findall(r"\btest_\w+", __doc__ or ""))
    tests = Path(__file__).parents[1]
    text = "\n".join(path.read_text(encoding="utf-8") for path in tests.rglob("test_*.py"))
    modules = {path.stem for path in tests.rglob("test_*.py")}
    assert len(named) > 25
    assert not {name for name in named - modules if f"def {name}(" not in text}


def test_groups_in_another_order_are_restored_by_name(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["reordered groups"]
    assert_same(outcome)
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=1e-5)


def test_buffers_and_frozen_parameters_are_restored(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["reordered groups"]
    assert_same(outcome, kinds=("module", "fp32"))
    assert torch.all(outcome.resumed["state"]["module norm.running_mean"] == 0.25)


def test_never_used_parameter_continues_to_decay(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["reordered groups"]
    saved, resumed = (own["state"] for own in (outcome.truth, outcome.resumed))
    for kind in ("exp_avg", "exp_avg_sq"):
        assert not saved[f"{kind} unused"].any()  # without a gradient only the decay changes it
        assert torch.equal(resumed[f"{kind} unused"], saved[f"{kind} unused"])
    decay = torch.ones(3)
    for step in range(5):
        decay *= 1 - 5e-3 * 0.97**step * 0.1
    torch.testing.assert_close(saved["fp32 unused"], decay)
    assert torch.equal(resumed["fp32 unused"], saved["fp32 unused"])


def test_tied_parameters_are_restored_and_stay_tied(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["tied"]
    assert_same(outcome)
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=1e-5)


def test_untying_and_tying_are_refused_by_name(outcomes: dict[str, Outcome]) -> None:
    assert_refused(outcomes["untied"], "third.weight [10, 10]: not in the saved state")
    assert_refused(outcomes["newly tied"], "third.weight [10, 10]: saved, but not in this run")


def test_extra_parameter_in_the_checkpoint_is_refused(outcomes: dict[str, Outcome]) -> None:
    assert_refused(
        outcomes["extra in the checkpoint"],
        "extra [10]: saved, but not in this run (--allow-unexpected extra)",
    )
    assert_same(outcomes["extra dropped on purpose"], "extra")


def test_missing_parameter_is_refused_and_starts_fresh_on_purpose(outcomes: dict[str, Outcome]) -> None:
    assert_refused(
        outcomes["missing in the checkpoint"], "extra [10]: not in the saved state (--allow-missing extra)"
    )
    outcome = outcomes["missing on purpose"]
    assert_same(outcome)
    assert not outcome.resumed["state"]["exp_avg extra"].any()


def test_rename_to_another_shape_is_refused(outcomes: dict[str, Outcome]) -> None:
    assert_refused(outcomes["renamed"], "unused: shape [3], saved extra has [10]")


def test_other_shapes_are_refused(outcomes: dict[str, Outcome]) -> None:
    assert_refused(outcomes["other shapes"], "first.weight: shape [10, 6], saved first.weight has [12, 6]")


def test_bf16_is_resumed_at_another_world_size(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["bf16"]
    assert_same(outcome)
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=2e-2)


@pytest.mark.parametrize("change", ["bf16 to fp32", "fp32 to bf16"])
def test_precision_change_keeps_master_weights_and_takes_no_loss_scale(
    outcomes: dict[str, Outcome], change: str
) -> None:
    outcome = outcomes[change]
    # bf16 weights as the forward used them come back in fp32; ZeRO's fp32 masters are what counts
    assert_same(outcome)
    assert outcome.resumed["scale"] == 1.0


def test_fp16_resumes_with_its_loss_scale(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["fp16"]
    assert_same(outcome)
    scaler = outcome.truth["scaler"]
    assert scaler["cur_scale"] > 2**6  # it has grown since the start
    assert outcome.resumed["scaler"] == scaler
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=2e-2)


def test_other_precision_or_scaling_starts_with_the_configurations_scale(
    outcomes: dict[str, Outcome],
) -> None:
    for change, scale in {"fp16 to static": 8.0, "fp16 to bf16": 1.0, "bf16 to fp16": 2.0**6}.items():
        outcome = outcomes[change]
        assert_same(outcome)
        assert outcome.resumed["scale"] == scale
        assert len(set(outcome.resumed["losses"])) == len(outcome.resumed["losses"])  # no step was skipped


def test_stage_1_is_resumed(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["stage 1 to 2"]
    assert_same(outcome)
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=1e-5)


@pytest.mark.parametrize("reason", REFUSED_ENGINES)
def test_engine_that_cannot_be_resumed_is_refused(outcomes: dict[str, Outcome], reason: str) -> None:
    assert_refused(outcomes[reason], reason)


def test_ranks_without_elements_of_a_group_are_restored(outcomes: dict[str, Outcome]) -> None:
    # the group `tiny` has one element: at W = 2 and 3 all ranks but the first own none of it
    for name in ("reordered groups", "bf16"):
        assert outcomes[name].resumed["state"]["exp_avg scale"].abs().item() > 0


def test_deepspeed_loads_the_universal_form(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["by DeepSpeed"]
    assert_same(outcome)


def test_conversion_agrees_with_deepspeeds_converter(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["converted by DeepSpeed"]
    assert outcome.ok, outcome.ended.output
    folder: Path = outcome.resumed["folder"] / "converted" / "zero"
    for name, tensor in outcome.truth["state"].items():
        kind, parameter = name.split()
        if kind in ("fp32", "exp_avg", "exp_avg_sq"):
            theirs = torch.load(folder / parameter / f"{kind}.pt")["param"]
            torch.testing.assert_close(theirs.reshape(tensor.shape), tensor, **EXACT, msg=name)
