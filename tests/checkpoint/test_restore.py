"""Every tensor, moment, step and rate comes back to the bit, at every world size."""

from typing import Any

import pytest
import torch

from .conftest import Job, run_jobs_in, tag_folder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("restore")]

WORLDS = (1, 2, 3, 4, 8)
STEPS = 20
"""After the resume, compared with the run that was not interrupted."""
EXACT = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}


@pytest.fixture(scope="session")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Any], dict[int, Any]]:
    """States saved at each world size, and the result of each resume at every world size."""
    folder = tmp_path_factory.mktemp("crossed")
    saves = [Job(w, "save_toy", {"folder": str(folder / str(w)), "more": STEPS}) for w in WORLDS]
    sources = {str(w): str(tag_folder(folder / str(w))) for w in WORLDS}
    resumes = [
        Job(w, "resume_toy", {"sources": sources, "out": str(folder / f"resumed{w}.pt"), "more": STEPS})
        for w in WORLDS
    ]
    for ended in run_jobs_in(folder / "jobs", saves + resumes):
        assert not any(ended.codes), ended.output
    truths = {w: torch.load(folder / str(w) / "truth.pt") for w in WORLDS}
    return truths, {w: torch.load(folder / f"resumed{w}.pt") for w in WORLDS}


@pytest.mark.parametrize("after", WORLDS)
@pytest.mark.parametrize("before", WORLDS)
def test_state_is_bitwise_equal_for_every_pair_of_world_sizes(
    crossed: tuple[dict[int, Any], dict[int, Any]], before: int, after: int
) -> None:
    truths, resumed = crossed
    truth, found = truths[before]["state"], resumed[after][str(before)]["state"]
    assert found.keys() == truth.keys()
    assert len([name for name in truth if name.startswith("exp_avg_sq")]) == 12
    assert len([name for name in truth if name.startswith("step")]) == 3
    for name, tensor in truth.items():
        torch.testing.assert_close(found[name], tensor, **EXACT, msg=name)
    assert len(truths[before]["lrs"]) == 3
    assert resumed[after][str(before)]["lrs"] == truths[before]["lrs"]


@pytest.mark.parametrize("before", WORLDS)
def test_losses_continue(crossed: tuple[dict[int, Any], dict[int, Any]], before: int) -> None:
    truths, resumed = crossed
    expected = truths[before]["losses"]
    assert len(expected) == STEPS
    assert resumed[before][str(before)]["losses"] == expected
    for after in WORLDS:
        assert resumed[after][str(before)]["losses"] == pytest.approx(expected, rel=1e-5)
