from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.batch import Batch
from aqtopo.data.loader import TrainingLoader
from aqtopo.training.step import (
    HostCopy,
    _describe_batch,
    loss_weights,
    on_device,
    pixel_weight,
    squared_error,
)
from tests.checkpoint.conftest import Job, run_jobs_in
from tests.conftest import tiny_tree

SHAPE = (2, 1, 6, 4, 4)


def test_invalid_targets_count_neither_in_the_loss_nor_in_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(SHAPE, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    valid = torch.rand(SHAPE, generator=generator) > 0.3
    poisoned = torch.where(valid, target, float("nan"))

    error = squared_error(prediction, poisoned, valid)
    error.backward()

    expected = ((prediction - target)[valid] ** 2).sum()
    torch.testing.assert_close(error, expected)
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad, torch.where(valid, 2 * (prediction.detach() - target), 0))


def test_half_precision_predictions_are_summed_in_fp32() -> None:
    prediction = torch.full((1, 1, 1, 256, 256), 2.0, dtype=torch.bfloat16)
    error = squared_error(prediction, torch.zeros(1, 1, 1, 256, 256), torch.ones(1, 1, 1, 256, 256).bool())
    assert error.dtype == torch.float32
    assert error == 4 * 256 * 256


@pytest.mark.parametrize("lead_time", ["encoder", "decoder"])
def test_the_description_of_a_batch_names_every_input(
    tiny_config: Callable[..., RunConfig], lead_time: str
) -> None:
    data = {"forcings": ["insolation"], "weather_at_horizons": ["u"]}
    config = tiny_config(data=data, model={"lead_time": lead_time})
    batch = next(TrainingLoader(open_store(config.data.store), config, 0, 1).steps(0))[0]
    ranges = _describe_batch(batch, config).partition("normalised ranges ")[2]
    assert [text.split(" ")[0] for text in ranges.split(", ")] == list(config.inputs)


def test_area_weights_are_the_cosine_of_the_latitude(
    tiny_store: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    store = open_store(tiny_store)
    assert loss_weights(tiny_config(), store) is None
    config = tiny_config(training={"area_weighted_loss": True})
    weights = loss_weights(config, store)
    assert weights is not None
    np.testing.assert_allclose(weights[:, 0], np.cos(np.radians(store.lat)), rtol=1e-6)


def test_weighted_loss_is_the_weighted_mean_over_valid_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    prediction = torch.randn(SHAPE, generator=generator)
    target = torch.randn(SHAPE, generator=generator)
    valid = torch.rand(SHAPE, generator=generator) > 0.3
    row_weights = torch.tensor([0.9, 0.8, 0.6, 0.3])[:, None]

    loss = squared_error(prediction, target, valid, row_weights) / pixel_weight(valid, row_weights)

    errors = (prediction - target).square().numpy()
    weights = np.broadcast_to(row_weights.numpy(), SHAPE) * valid.numpy()
    np.testing.assert_allclose(loss, np.average(errors, weights=weights), rtol=1e-6)
    assert pixel_weight(valid) == valid.sum()


VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}, "communication_data_type": "fp32"},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 4}},
    "unclipped": {"gradient_clipping": 0.0},
    "offloaded": {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "zero_force_ds_cpu_optimizer": False,
    },
    "in place": {"zero_optimization": {"stage": 2, "contiguous_gradients": False}},
    "bf16 in place": {
        "bf16": {"enabled": True},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": 2, "contiguous_gradients": False},
    },
}


@pytest.fixture(scope="session")
def stepped(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    """Outputs of the jobs in stepping.py, on two ranks with two micro-steps, by variant."""
    folder = tmp_path_factory.mktemp("stepped")
    jobs = []
    for name, block in VARIANTS.items():
        tree = tiny_tree(tiny_store, folder / "run")
        tree["training"] |= {"ranks_per_node": 2, "area_weighted_loss": name == "bf16"}
        tree["deepspeed"] |= block
        config = RunConfig.model_validate(tree).to_json()
        (folder / f"{name}.json").write_text(config, encoding="utf-8")
        for function in ("spoiled_steps", "host_reads", "summed_gradients"):
            arguments = {"config": str(folder / f"{name}.json"), "out": str(folder / f"{name}.{function}")}
            jobs.append(Job(2, function, arguments, file="../training/stepping"))
    for job, ended in zip(jobs, run_jobs_in(folder / "jobs", jobs), strict=True):
        assert not any(ended.codes), (job, ended.output[-3000:])
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("stepped")
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_or_gradient_that_is_not_finite_never_changes_the_state(stepped: Path, variant: str) -> None:
    """Only rank 1 has the bad value, and only in the first of two micro-steps."""
    messages = {
        "infinite loss": "the training loss is inf at step 3, epoch 0; the weights were not updated",
        "loss not a number": "the training loss is nan at step 5, epoch 0; the weights were not updated",
        "infinite gradient": "the training gradient is inf at step 7, epoch 0; the weights were not updated",
        "no target": "step 9 of epoch 0 has no valid target",
    }
    for rank in (0, 1):
        found = torch.load(stepped / f"{variant}.spoiled_steps.{rank}")
        for name, message in messages.items():
            attempt = found[name]
            assert not attempt["changed"], (name, attempt["changed"])
            assert np.isfinite(attempt["good"])
            if (variant, name) == ("fp16", "infinite gradient"):  # only an overflow of the loss scale
                assert attempt["error"] is attempt["norm"] is None
            else:
                assert message in attempt["error"], attempt["error"]
        losses = [attempt["good"] for attempt in found.values()]
        assert losses == sorted(losses, reverse=True)  # the good steps between them still learn


@pytest.mark.slow
@pytest.mark.xdist_group("stepped")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_reads_nothing_on_the_host_that_deepspeed_does_not(stepped: Path, variant: str) -> None:
    """On a GPU, the host would wait for each such read, and then the GPU for the host."""
    readers = (stepped / f"{variant}.host_reads").read_text(encoding="utf-8").split()
    ours = [place for place in readers if not place.startswith("deepspeed/")]
    assert len(set(ours)) == 1, readers
    assert len(ours) == 2  # the valid pixels of the two micro-batches, which are in host memory


@pytest.mark.slow
@pytest.mark.xdist_group("stepped")
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "unclipped"])
def test_gradients_of_micro_steps_are_added_in_fp32(stepped: Path, variant: str) -> None:
    found = torch.load(stepped / f"{variant}.summed_gradients")
    assert found["gradient"].unique().tolist() == [256.5 * (2**4 if variant == "fp16" else 1)]
    assert not found["timer"]  # it would wait for the device twice in each micro-step


def loaded(config: RunConfig) -> list[Batch]:
    return list(next(TrainingLoader(open_store(config.data.store), config, 0, 1).steps(0)))


def test_batches_are_the_same_on_the_device(tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config()
    batches = loaded(config)
    assert list(on_device(batches, torch.device("cpu"))) == batches  # the same objects, not copies
    if torch.cuda.is_available():
        gpu = torch.device("cuda")
        pinned = [batch.pin_memory() for batch in batches]
        for batch, copy in zip(batches, on_device(pinned, gpu), strict=True):
            assert copy.targets.device.type == "cuda"
            torch.testing.assert_close(copy.inputs.cpu(), batch.inputs)
        assert HostCopy(torch.arange(3, device=gpu)).read() == [0, 1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU has streams")
def test_copies_of_a_step_reuse_the_memory_of_the_last(tiny_config: Callable[..., RunConfig]) -> None:
    config, gpu = tiny_config(), torch.device("cuda")
    pinned = [batch.pin_memory() for batch in loaded(config)]
    reserved = []
    for _ in range(32):  # as many streams as PyTorch has
        assert len(list(on_device(pinned, gpu))) == len(pinned)
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] == reserved[1]


def test_host_copy_reads_numbers_and_lists() -> None:
    assert HostCopy(torch.tensor(2.5)).read() == 2.5
    assert HostCopy(torch.tensor([1.0, 2.0])).read() == [1.0, 2.0]
