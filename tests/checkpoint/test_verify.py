"""Whatever differs in the live engine, on one rank of two, is refused by name on both."""

import json
import re
from pathlib import Path

import pytest

from .conftest import Job, run_jobs_in, tag_folder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("saved")]

SPOILT = {
    "master": r"first.weight fp32: 1 of 14 elements differ, the first is 7 instead of",
    "exp_avg": r"first.weight exp_avg: 1 of 14 elements differ, the first is 7 instead of",
    "exp_avg_sq": r"exp_avg_sq: 1 of \d+ elements differ, the first is 7 instead of",
    "step": r"group late: step 4 instead of 5",
    "lr": r"group early: lr 0.0257\d+, but this run's schedule has 0.0085\d+",
    "weight_decay": r"group late: weight_decay 0.0 instead of 0.1",
    "betas": r"group tiny: betas \[0.9, 0.99\] instead of \[0.9, 0.999\]",
    "eps": r"group early: eps 1e-06 instead of 1e-08",
    "weight in the module": r"last.bias in the module: 1 of 6 elements differ, the first is 7 instead of",
    "frozen parameter": r"frozen.weight in the module: 1 of 100 elements differ, the first is 7 instead of",
    "buffer": r"norm.running_mean in the module: 1 of 10 elements differ, the first is 0 instead of 0.25",
    "global_steps": r"global_steps: 6 instead of 5",
    "global_samples": r"global_samples: 0 instead of 120",
}


@pytest.fixture(scope="session")
def heard(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Messages of two ranks about each value that was changed on the second."""
    folder = tmp_path_factory.mktemp("heard")
    arguments = {"source": str(tag_folder(saved)), "out": str(folder)}
    (ended,) = run_jobs_in(folder / "jobs", [Job(2, "perturb", arguments, file="perturb")])
    assert not any(ended.codes), ended.output
    return [json.loads((folder / f"heard{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize("what", SPOILT)
def test_difference_on_one_rank_is_refused_by_name_on_all(heard: list[dict[str, str]], what: str) -> None:
    for own in heard:
        assert own[what].startswith("the restored state differs from the saved one:")
    assert heard[0][what] == heard[1][what]
    (problem,) = [line for line in heard[0][what].splitlines() if line.startswith("  ")]
    assert re.search(SPOILT[what], problem), problem


def test_unchanged_engine_passes_with_the_rates_that_it_holds(heard: list[dict[str, str]]) -> None:
    for own in heard:
        assert own["nothing"].startswith("Verified(parameters=12, total=12, fresh=0, rates={'early': 0.0085")
        assert own["nothing"].endswith("groups=3, step=5)")


def test_only_allowed_differences_pass(heard: list[dict[str, str]]) -> None:
    for what in SPOILT:
        verdict = heard[0][f"{what}, allowed"]
        assert verdict.startswith("Verified" if what == "weight_decay" else "the restored state differs"), (
            what
        )
