import torch

from aqtopo.training.step import squared_error

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
