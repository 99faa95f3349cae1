from collections.abc import Callable

import pytest

from aqtopo.config import RunConfig, load_config
from aqtopo.planning import Plan, make_plan

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


def test_the_peak_counts_activations_as_configured(tiny_config: Callable[..., RunConfig]) -> None:
    plain = make_plan(tiny_config())
    checkpointed = make_plan(tiny_config(model={"gradient_checkpointing": True}))
    assert plain.peak - checkpointed.peak == plain.activations.plain - checkpointed.activations.checkpointed
    assert plain.peak == plain.state.device + plain.reduction + plain.activations.plain + plain.workspace


@pytest.mark.parametrize("epoch", [-1, 10])
def test_an_epoch_outside_of_the_run_is_refused(epoch: int) -> None:
    with pytest.raises(ValueError, match=rf"--at-epoch {epoch}: .*Choose 0 to 9\."):
        make_plan(load_config("ds_configs/resume_reference.json"), epoch)
