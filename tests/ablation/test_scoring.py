from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.ablation.factors import parse_grid, variants
from aqtopo.ablation.plan import Trial
from aqtopo.ablation.scoring import Scorer, is_scored
from aqtopo.config import RunConfig
from aqtopo.evaluation.evaluate import EvalOptions, EvaluatedSplit, evaluate
from aqtopo.evaluation.results import read_table, write_results, write_tables
from aqtopo.inference.load import load_run


@pytest.mark.parametrize(("split", "every_hours"), [("validation", None), ("test", 48)])
def test_scores_of_something_else_are_made_again(
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[..., Path],
    split: EvaluatedSplit,
    every_hours: int | None,
) -> None:
    """As somebody leaves them who runs `aqtopo evaluate` in the folder of a training."""
    config = tiny_config()
    run_dir = save_untrained(config)
    trial = Trial(0, variants(parse_grid(["wind_order"]))[0], 0, config)
    assert not is_scored(trial)
    write_results(evaluate(load_run(run_dir), split, options=EvalOptions(every_hours=every_hours)), run_dir)
    assert not is_scored(trial)
    write_tables({"by_day": read_table(run_dir, "by_day").drop_attrs()}, run_dir)
    assert not is_scored(trial)
    Scorer().score(trial)
    assert is_scored(trial)
