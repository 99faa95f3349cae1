from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import load_config
from aqtopo.training.engine import batch_fields

REFERENCE = load_config("ds_configs/resume_reference.json")


def test_configured_world_keeps_the_configured_accumulation() -> None:
    assert batch_fields(REFERENCE, 400) == {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 1600,
    }


def test_lost_node_raises_the_accumulation_to_hold_the_same_step() -> None:
    assert batch_fields(REFERENCE, 392)["gradient_accumulation_steps"] == 3
    assert batch_fields(REFERENCE, 1)["gradient_accumulation_steps"] == 800


@given(world=st.integers(1, 2000))
def test_a_step_always_has_room_for_its_samples_and_wastes_less_than_a_micro_step(world: int) -> None:
    room = batch_fields(REFERENCE, world)["train_batch_size"]
    assert 0 <= room - REFERENCE.train_batch < world * REFERENCE.micro_batch
