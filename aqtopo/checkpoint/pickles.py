"""Reading and writing torch files without trusting them: a checkpoint is data, never code.

Every read is `weights_only`, with the few plain classes that DeepSpeed puts into its shards allowed by name;
a file that wants any other global is refused before any of it is built.
"""

import copyreg
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from aqtopo.refusal import RefusedError

_BROKEN = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)


def load_data(path: Path) -> Any:
    """The tensors and plain values of a torch file; tensors stay on the disk until they are read.

    Raises:
        RefusedError: the file cannot be read, or holds more than data.
    """
    try:
        with torch.serialization.safe_globals(_deepspeed_classes()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise RefusedError(
            f"{path} holds more than data, or is damaged, and was not loaded: {_first_line(error)}"
        ) from error
    except _BROKEN as error:
        raise RefusedError(f"{path} cannot be read: {_first_line(error)}") from error


def save_data(data: Any, path: Path) -> None:
    """Write a torch file that `load_data` reads."""
    with writing_data():
        torch.save(data, path)


@contextmanager
def writing_data() -> Iterator[None]:
    """Let torch.save write what `load_data` reads, and quickly.

    ZeRO's stage goes by its number: some Pythons, such as Debian 12's 3.11.2, pickle an enum's member as
    a call of `getattr`, which no reader may be asked to trust. CRC-32, which SHA-256 replaces, is left
    out: 0.25 s instead of 1.4 s for 312 MB on one core.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, _by_value)  # for good: it changes nothing but how the member is written
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _by_value(member: Enum) -> tuple[type[Enum], tuple[object]]:
    return type(member), (member.value,)


def _deepspeed_classes() -> list[Any]:
    """Classes without behaviour at unpickling that ZeRO's shards hold."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
