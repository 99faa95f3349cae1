import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import load_config
from aqtopo.training.schedule import Schedule

STEPS_PER_EPOCH = 87


def cosine(interval: str = "step", warmup: int = 0, epochs: int = 10, eta_min: float = 1e-6) -> Schedule:
    peaks = {"vit_blocks": 1e-5, "others": 1e-4}
    return Schedule(peaks, eta_min, warmup, epochs, STEPS_PER_EPOCH, interval)  # type: ignore[arg-type]


def test_reference_run_has_its_published_rates_at_epoch_three() -> None:
    schedule = Schedule.from_config(load_config("ds_configs/resume_reference.json"), STEPS_PER_EPOCH)
    lrs = schedule.lrs(3 * STEPS_PER_EPOCH + 50)
    assert lrs == pytest.approx(
        {
            "vit_blocks": 8.145034e-06,
            "wind_embedding": 1.589846e-04,
            "head": 3.990074e-05,
            "others": 7.959537e-05,
        },
        rel=1e-6,
    )


def test_rate_is_constant_within_an_epoch_of_interval_epoch() -> None:
    schedule = cosine("epoch")
    first, last = 3 * STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH - 1
    assert schedule.lr("others", first) == schedule.lr("others", last)
    assert schedule.lr("others", last + 1) < schedule.lr("others", last)


def test_warm_up_is_linear_and_reaches_the_peak_on_its_last_step() -> None:
    schedule = cosine(warmup=50)
    assert schedule.lr("others", 0) == pytest.approx(1e-4 / 50)
    assert schedule.lr("others", 24) == pytest.approx(1e-4 / 2)
    assert schedule.lr("others", 49) == pytest.approx(1e-4)
    assert schedule.lr("others", 50) == pytest.approx(1e-4)


def test_half_way_the_rate_is_the_mean_of_peak_and_minimum() -> None:
    schedule = cosine(eta_min=2e-6)
    assert schedule.lr("others", schedule.total_steps // 2) == pytest.approx((1e-4 + 2e-6) / 2)


@given(step=st.integers(0, 10 * STEPS_PER_EPOCH - 1), warmup=st.integers(0, 100))
def test_rate_stays_between_zero_and_the_peak(step: int, warmup: int) -> None:
    schedule = cosine(warmup=warmup)
    for group, peak in schedule.peak_lrs.items():
        lr = schedule.lr(group, step)
        assert 0 < lr <= peak * (1 + 1e-12)
        assert math.isfinite(lr)


def test_warm_up_longer_than_the_run_is_refused() -> None:
    config = load_config("ds_configs/lumi_400gpu.json", ["schedule.warmup_steps=5000"])
    with pytest.raises(ValueError, match=r"schedule.warmup_steps = 5000: the run has only 2610 steps"):
        Schedule.from_config(config, STEPS_PER_EPOCH)
