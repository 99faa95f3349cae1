from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aqtopo.config import RunConfig
from aqtopo.report.curves import alpha_curve
from aqtopo.report.history import (
    History,
    alpha_sentence,
    preference_rows,
    read_alphas,
    read_history,
)

from .conftest import step_line, validation_line, write_metrics


def test_steps_and_validations_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(
        path,
        [
            {"event": "start"},
            step_line(1, 2.0),
            step_line(2, 1.0),
            validation_line(2, 0.9),
            step_line(3, 0.8, epoch=1),
            validation_line(3, 0.7, epoch=1),
            {"event": "stop"},
        ],
    )
    history = read_history(path)
    assert [step.train_loss for step in history.steps] == [2.0, 1.0, 0.8]
    assert history.steps[-1].epoch == 1
    assert history.best is not None
    assert (history.best.step, history.best.val_loss) == (3, 0.7)
    assert history.starts == 1


def test_a_repeated_step_replaces_the_lost_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    start = {"event": "start"}
    write_metrics(path, [start, step_line(1, 2.0), step_line(2, 9.0), start, step_line(2, 1.0)])
    history = read_history(path)
    assert [step.train_loss for step in history.steps] == [2.0, 1.0]
    assert history.starts == 2
    assert history.best is None


def test_validations_on_other_data_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reset = {"event": "validation_reset", "step": 1, "saved_best": 0.1}
    lines = [step_line(1, 2.0), validation_line(1, 0.1), reset, step_line(2, 2.0), validation_line(2, 0.5)]
    write_metrics(path, lines)
    assert [each.val_loss for each in read_history(path).validations] == [0.5]


def test_alpha_is_read_where_it_was_logged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    start, one = {"event": "start", "step": 0, "alpha": {"blocks.0.attn.alpha": [2.0]}}, step_line(1, 2.0)
    none = validation_line(1, 0.9) | {"alpha": {}}  # a model without the bias
    write_metrics(path, [start, one, none, validation_line(2, 0.8)])
    assert read_history(path).alphas == {0: {"blocks.0.attn.alpha": [2.0]}}


def test_what_heads_prefer_is_told_from_its_first_to_its_last(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    start = {"event": "start", "step": 0, "preferences": {"blocks.0 travel [h]": [0.0, 24.0]}}
    later = validation_line(1, 0.9) | {"preferences": {"blocks.0 travel [h]": [0.25, 21.4681]}}
    write_metrics(path, [start, step_line(1, 2.0), later])
    assert preference_rows(read_history(path)) == [("block 0 travel [h]", "0, 24", "0.25, 21.5")]
    write_metrics(path, [step_line(1, 2.0)])
    assert preference_rows(read_history(path)) == []


def test_a_run_without_a_step_has_nothing_to_draw(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, [{"event": "start"}])
    with pytest.raises(ValueError, match="no training step yet"):
        read_history(path)
    with pytest.raises(ValueError, match=r"absent\.jsonl is missing"):
        read_history(tmp_path / "absent.jsonl")


def test_starts_resumes_and_ends_are_told_as_they_came(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    resume = {
        "event": "resume",
        "time": "2026-11-21T23:54:16.046+00:00",
        "step": 1,
        "source": "/elsewhere/checkpoints/epoch00-step000001",
        "line": "resume verified: 43/43 parameters",
        "seconds": {"load": 0.5, "verify": 1.0},
    }
    contrast_tables = {"event": "loss_after_resume", "step": 2, "running": 3.5, "saved": 0.5, "jump": True}
    start = {"event": "start", "world_size": 2, "slurm": {"job": "17"}}
    write_metrics(
        path,
        [start, step_line(1, 2.0), resume, contrast_tables, {"event": "stop", "step": 2, "reason": "done"}],
    )
    told = read_history(path).events
    assert [(event.step, event.text) for event in told] == [
        (None, "training starts on 2 processes, Slurm job 17"),
        (1, "from epoch00-step000001: resume verified: 43/43 parameters (1.5 s)"),
        (2, "mean of the losses since: 3.5000, before 0.5000; they jump"),
        (2, "training ends: done"),
    ]
    assert told[1].time == "2026-11-21 23:54:16"


UNLOGGED = History((), (), 1)

TinyConfig = Callable[..., RunConfig]
SaveUntrained = Callable[..., Path]


def test_alpha_is_read_from_saved_states(tiny_config: TinyConfig, save_untrained: SaveUntrained) -> None:
    config = tiny_config(model={"alpha_per_head": True, "alpha": 1.5})
    alphas = read_alphas(save_untrained(config, factor=2.0), config, UNLOGGED)
    assert alphas is not None
    assert alphas.steps == (0, 7)
    np.testing.assert_allclose(alphas.by_block["block 0"], [[1.5, 1.5], [3.0, 3.0]])
    assert alpha_sentence(alphas) == "block 0 from 1.500 to 3.000 to 3.000 by head km⁻¹, at step 7."
    assert alpha_curve(alphas).uri.startswith("data:image/svg+xml;base64,")


def test_logged_alpha_has_priority_over_rounded_states(
    tiny_config: TinyConfig, save_untrained: SaveUntrained
) -> None:
    config = tiny_config()
    logged = {step: {"blocks.0.attn.alpha": [value]} for step, value in ((0, 1.9), (4, 1.8), (6, 1.7))}
    alphas = read_alphas(save_untrained(config), config, History((), (), 1, alphas=logged))
    assert alphas is not None
    assert alphas.steps == (0, 4, 6)
    np.testing.assert_allclose(alphas.by_block["block 0"].ravel(), [1.9, 1.8, 1.7])


def test_a_model_without_the_bias_has_none(tiny_config: TinyConfig, save_untrained: SaveUntrained) -> None:
    config = tiny_config(model={"elevation_bias": False})
    assert read_alphas(save_untrained(config), config, UNLOGGED) is None
