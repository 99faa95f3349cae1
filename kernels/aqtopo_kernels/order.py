"""Token orders: one permutation per sample, (B, N)."""

import torch
from torch import Tensor

from aqtopo_kernels.backend import debugging


def invert_order(order_BN: Tensor) -> Tensor:
    """Return the position of each token in the order, int64: inverse[order[r]] = r."""
    place_BN = torch.arange(order_BN.shape[1], device=order_BN.device).expand(order_BN.shape)
    return torch.empty_like(order_BN, dtype=torch.int64).scatter_(1, order_BN.long(), place_BN)


def check_order(operation: str, order: Tensor, shape: tuple[int, int], device: torch.device) -> None:
    """Check that a tensor can be the order of tokens of shape (B, N) on a device.

    Rows are checked to be permutations only with AQTOPO_KERNELS_DEBUG=1, because it synchronises with the
    device.

    Raises:
        ValueError: the shape, dtype, device or a checked row is wrong.
    """
    if order.shape != shape:
        raise ValueError(
            f"{operation} needs an order of shape (B, N) = {shape}, but got {tuple(order.shape)}."
        )
    if order.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{operation} needs the order in int32 or int64, but got {order.dtype}.")
    if order.device != device:
        raise ValueError(
            f"{operation} needs tokens and order on one device, but they are on {device}, {order.device}."
        )
    if debugging() and order.device.type != "meta":
        _check_permutation(operation, order)


def _check_permutation(operation: str, order_BN: Tensor) -> None:
    place_N = torch.arange(order_BN.shape[1], device=order_BN.device, dtype=order_BN.dtype)
    wrong_B = (order_BN.sort(1).values != place_N).any(1)
    if bool(wrong_B.any()):
        samples = wrong_B.nonzero().flatten().tolist()
        raise ValueError(
            f"{operation} needs an order whose rows are permutations of 0 ... {len(place_N) - 1}, but in the "
            f"order of shape {tuple(order_BN.shape)} the rows of sample(s) {samples} are not."
        )
