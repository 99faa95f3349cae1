import pytest

from aqtopo.refusal import (
    BusyError,
    LostRankError,
    RefusedError,
    Retry,
    UnreadableDataError,
    raise_problems,
    retry_after,
)


@pytest.mark.parametrize("error", [ValueError("no such key"), RefusedError("damaged")])
def test_a_user_error_is_never_retried(error: Exception) -> None:
    assert retry_after(error) is Retry.NEVER


@pytest.mark.parametrize(
    "error",
    [
        UnreadableDataError("a shard"),
        BusyError("another run"),
        LostRankError("rank 3"),
        TimeoutError("the store does not answer"),
        OSError(28, "No space left on device"),
        MemoryError(),
        RuntimeError("out of memory"),
    ],
)
def test_a_possibly_temporary_error_is_retried(error: Exception) -> None:
    assert retry_after(error) is Retry.PERHAPS


def test_raise_problems_raises_the_given_error_class() -> None:
    raise_problems("nothing", [])
    with pytest.raises(BusyError, match=r"(?s)busy:.*held.*Wait"):
        raise_problems("busy", ["held"], "Wait.", BusyError)
