import base64

import numpy as np
import pytest

from aqtopo.report.curves import MAX_POINTS, loss_curve, lr_curve, thinned
from aqtopo.report.history import History
from aqtopo.run_directory.log_file import StepLine, ValidationLine

from .conftest import logged_validation


def history(steps: int = 20, validations: tuple[ValidationLine, ...] = ()) -> History:
    entries = [
        StepLine.model_construct(step=s, epoch=0, train_loss=2.0 / s, lr={"a": 1e-3 / s, "b": 1e-4 / s})
        for s in range(1, steps + 1)
    ]
    return History(tuple(entries), validations, 1)


def test_curves_are_svg_and_described_in_words() -> None:
    curve = loss_curve(history(20, (logged_validation(10, 0.7), logged_validation(20, 0.4))))
    svg = base64.b64decode(curve.uri.removeprefix("data:image/svg+xml;base64,")).decode()
    assert "<svg" in svg
    assert curve.alt == (
        "Loss over the steps. Training: 2 at step 1, 0.1 at step 20. "
        "Validation: 2 times, lowest 0.4 at step 20."
    )
    assert "a from 1.00e-03 to 5.00e-05" in lr_curve(history()).alt


def test_a_run_without_validation_has_a_curve_too() -> None:
    assert loss_curve(history(1)).alt.endswith("No validation yet.")


def test_the_same_history_gives_the_same_picture() -> None:
    assert lr_curve(history()).uri == lr_curve(history()).uri


@pytest.mark.parametrize("steps", [1, MAX_POINTS, MAX_POINTS + 1, 5000])
def test_thinning_stays_on_the_line_from_end_to_end(steps: int) -> None:
    x = np.arange(steps, dtype=float)
    thin_x, thin_y = thinned(x, x)
    assert len(thin_x) == min(steps, MAX_POINTS)
    np.testing.assert_array_equal(thin_x, thin_y)
    longest = -(-steps // MAX_POINTS)
    assert thin_x[0] <= longest / 2
    assert thin_x[-1] >= steps - 1 - longest / 2
    assert np.all(np.diff(thin_x) > 0)
