import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aqtopo.cli.main import app
from aqtopo.evaluation.evaluate import evaluate
from aqtopo.evaluation.results import write_scores
from aqtopo.inference.load import load_run


def test_path_of_the_page_is_printed(untrained_run: Path) -> None:
    write_scores(evaluate(load_run(untrained_run)).scores, untrained_run)
    lrs = '{"vit_blocks": 1e-4}'
    time = "2026-11-21T20:15:01+00:00"
    line = f'{{"event": "step", "time": "{time}", "step": 1, "epoch": 0, "train_loss": 0.5, "lr": {lrs}}}\n'
    (untrained_run / "metrics.jsonl").write_text(line, encoding="utf-8")
    (untrained_run / "run.json").write_text(
        '{"started": "2026-11-21T20:15:00+00:00", "versions": {}}', encoding="utf-8"
    )
    result = CliRunner().invoke(
        app, ["report", str(untrained_run), "--init", "2018-01-02T00", "--place", "Lanzhou=36.1,103.8"]
    )
    assert result.exit_code == 0, result.output
    assert str(untrained_run / "report.html") in result.stdout
    assert "Lanzhou, 38.0°N 100.0°E" in (untrained_run / "report.html").read_text(encoding="utf-8")


def test_run_without_scores_is_refused_with_the_remedy(untrained_run: Path) -> None:
    with pytest.raises(ValueError, match="aqtopo evaluate"):
        CliRunner().invoke(app, ["report", str(untrained_run)], catch_exceptions=False)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .+absent\. Name a run directory"):
        CliRunner().invoke(app, ["report", str(tmp_path / "absent")], catch_exceptions=False)


def test_unfinished_ablation_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "ablation.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="Let `aqtopo ablate` finish"):
        CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)


def test_initial_time_is_refused_for_an_ablation(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="--init is for maps"):
        CliRunner().invoke(app, ["report", str(tmp_path), "--init", "2018-01-02T00"], catch_exceptions=False)


def test_invalid_initial_time_is_refused(untrained_run: Path) -> None:
    with pytest.raises(ValueError, match="the initial time 'yesterday'"):
        CliRunner().invoke(app, ["report", str(untrained_run), "--init", "yesterday"], catch_exceptions=False)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: Callable[..., object] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "jinja2" else found(name, *rest)
    )
    with pytest.raises(ValueError, match=r"needs jinja2, which is not installed.*aqtopo\[report\]"):
        CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
