import os
import signal

import pytest

from aqtopo.training.stopping import EarlyStopping, Stop, StopRequests


@pytest.mark.parametrize(
    ("number", "meaning"),
    [(signal.SIGINT, Stop.END), (signal.SIGTERM, Stop.END), (signal.SIGUSR1, Stop.RESTART)],
)
def test_signal_is_remembered_and_the_old_handler_comes_back(number: signal.Signals, meaning: Stop) -> None:
    before, stops = signal.getsignal(number), StopRequests()
    with stops.recording(number):
        assert stops.requested is Stop.NO
        os.kill(os.getpid(), number)
        assert stops.requested is meaning
    assert signal.getsignal(number) is before


def test_whoever_cancels_wins_over_the_time_limit() -> None:
    stops = StopRequests(lambda: True)
    assert stops.requested is Stop.RESTART
    with stops.recording(signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stops.requested is Stop.END


def test_patience_counts_validations_since_the_best() -> None:
    early = EarlyStopping(patience=2)
    outcomes = [early.update(loss) for loss in (1.0, 0.5, 0.6, 0.5)]
    assert outcomes == [True, True, False, False]
    assert early.exhausted
    assert early.best == 0.5


def test_new_best_restores_patience() -> None:
    early = EarlyStopping(patience=2)
    for loss in (1.0, 1.1, 0.9, 1.0):
        early.update(loss)
    assert not early.exhausted


def test_without_patience_a_run_never_stops_early() -> None:
    early = EarlyStopping(patience=None)
    for _ in range(100):
        early.update(1.0)
    assert not early.exhausted


def test_validation_loss_that_is_not_a_number_is_never_the_best() -> None:
    early = EarlyStopping(patience=1)
    assert not early.update(float("nan"))
    assert early.exhausted
