from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import RunConfig, load_config
from aqtopo.data.samples import SampleTable, StepPlan
from aqtopo.planning.plan import Calendar, Plan, make_calendar, make_plan

TinyConfig = Callable[..., RunConfig]

LRS = {
    "vit_blocks": 8.145034e-06,
    "wind_embedding": 1.589846e-04,
    "head": 3.990074e-05,
    "others": 7.959537e-05,
}
TENSORS = {"vit_blocks": 72, "wind_embedding": 2, "head": 6, "others": 11}


@pytest.fixture(scope="module")
def reference() -> Plan:
    return make_plan(load_config("ds_configs/resume_reference.json"), epoch=3)


@pytest.mark.parametrize("group", LRS)
def test_the_reference_learning_rates_at_epoch_3(reference: Plan, group: str) -> None:
    assert f"{reference.groups[group].lr:.6e}" == f"{LRS[group]:.6e}"


@pytest.mark.parametrize("group", TENSORS)
def test_the_reference_groups(reference: Plan, group: str) -> None:
    assert reference.groups[group].tensors == TENSORS[group]


def test_the_reference_model_has_91_tensors_of_52_million_parameters(reference: Plan) -> None:
    assert reference.tensors == 91
    assert reference.parameters == sum(group.parameters for group in reference.groups.values())
    assert reference.parameters == pytest.approx(52e6, rel=0.02)


def test_the_reference_plan_as_json(reference: Plan) -> None:
    plan = reference.as_json()
    assert plan["effective_batch"] == 1600
    assert plan["micro_steps_per_epoch"] == 173
    assert plan["steps_per_epoch"] == 87
    assert plan["first_step"] == 3 * 87
    assert plan["validations"] == [{"micro_step": 100, "step": 311}]
    assert plan["samples"]["train"] == {"times": 34_680, "entries": 138_720}
    assert plan["counted_in"] == "complete hourly calendar"
    # 4 bytes a parameter, and a 400th of 16 more; padding adds under 0.01 %.
    assert plan["bytes_per_rank"] == pytest.approx(plan["parameters"] * (4 + 16 / 400), rel=1e-4)


def test_the_decoder_variant_has_the_same_tensors() -> None:
    plan = make_plan(load_config("ds_configs/resume_reference.json", ["model.lead_time=decoder"]))
    assert plan.tensors == 91
    assert plan.calendar.steps.micro_steps_per_epoch == 34_680 // 800


def test_the_peak_counts_activations_as_configured(tiny_config: TinyConfig) -> None:
    plain = make_plan(tiny_config())
    checkpointed = make_plan(tiny_config(model={"gradient_checkpointing": True}))
    assert plain.peak - checkpointed.peak == plain.activations.plain - checkpointed.activations.checkpointed
    assert plain.peak == plain.state.device + plain.reduction + plain.activations.plain + plain.workspace


@pytest.mark.parametrize("epoch", [-1, 10])
def test_an_epoch_outside_of_the_run_is_refused(epoch: int) -> None:
    with pytest.raises(ValueError, match=rf"--at-epoch {epoch} is out of range: .*Choose 0 to 9\."):
        make_plan(load_config("ds_configs/resume_reference.json"), epoch)


def calendar(micro_steps: int, accumulation: int, every: int) -> Calendar:
    table = SampleTable(np.empty(0, "datetime64[h]"), (12,), True)
    steps = StepPlan(micro_steps, micro_batch=1, accumulation=accumulation, world=1)
    return Calendar(False, 11, {"train": table}, steps, epochs=5, validate_every=every)


def test_the_reference_run_has_87_steps_of_1600_samples() -> None:
    made = make_calendar(load_config("ds_configs/resume_reference.json"))
    assert not made.from_store
    assert len(made.tables["train"].times) == 34_680
    assert len(made.tables["train"]) == 138_720
    assert made.steps.train_batch == 1600
    assert made.steps.micro_steps_per_epoch == 173
    assert made.steps.steps_per_epoch == 87
    assert made.total_steps == 870


def test_step_311_is_after_100_micro_steps_of_epoch_3() -> None:
    made = make_calendar(load_config("ds_configs/resume_reference.json"))
    assert made.validations(3) == {100: 311}


def test_the_last_step_of_an_epoch_may_be_incomplete() -> None:
    made = calendar(micro_steps=5, accumulation=2, every=5)
    assert [made.validations(epoch) for epoch in range(3)] == [{5: 3}, {5: 6}, {5: 9}]


@given(
    micro_steps=st.integers(1, 60),
    accumulation=st.integers(1, 7),
    every=st.integers(1, 60),
    epoch=st.integers(0, 4),
)
def test_validations_match_the_training_loop(
    micro_steps: int, accumulation: int, every: int, epoch: int
) -> None:
    made = calendar(micro_steps, accumulation, every)
    due = []
    for step in range(1, made.steps.steps_per_epoch + 1):
        done, before = min(step * accumulation, micro_steps), (step - 1) * accumulation
        if done // every > before // every:  # the rule of the training loop
            due.append(epoch * made.steps.steps_per_epoch + step)
    assert list(made.validations(epoch).values()) == due


def test_hours_of_an_existing_store_are_counted(tiny_config: TinyConfig) -> None:
    made = make_calendar(tiny_config())
    assert made.from_store
    assert len(made.tables["train"].times) == 24
    assert len(made.tables["test"].times) == 6


def test_an_unreadable_store_is_refused(tiny_config: TinyConfig, tmp_path: Path) -> None:
    (tmp_path / "broken.zarr").mkdir()
    with pytest.raises(ValueError, match=r"broken\.zarr"):
        make_calendar(tiny_config(data={"store": str(tmp_path / "broken.zarr")}))


def test_four_gpus_a_node_make_the_steps_of_the_full_run() -> None:
    full, small = (
        make_plan(load_config(f"ds_configs/{name}.json")) for name in ("lumi_400gpu", "nvidia_16gpu")
    )
    assert small.config.train_batch == full.config.train_batch == 1600
    assert small.calendar.total_steps == full.calendar.total_steps
    assert list(small.calendar.validations(0).values()) == list(full.calendar.validations(0).values())
    assert {name: group.lr for name, group in small.groups.items()} == {
        name: group.lr for name, group in full.groups.items()
    }
