"""PyTorch's AdamW goes on with DeepSpeed's compiled ones and back; they keep the step count differently.

DeepSpeedCPUAdam is the real one, compiled. Of FusedAdam all but its kernel is real: what it keeps in its
state and where it takes the step from. That its GPU kernel reads them so has not been tested here.
"""

from pathlib import Path

import pytest
import torch

from .conftest import Job, run_jobs_in, tag_folder
from .test_silent_failures import Outcome, assert_same

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("optimizers")]

CPU, FUSED = "DeepSpeedCPUAdam", "FusedAdam"
CHANGES = [("AdamW", CPU), (CPU, "AdamW"), ("AdamW", FUSED), (FUSED, "AdamW"), (FUSED, CPU), (FUSED, FUSED)]


@pytest.fixture(scope="session")
def outcomes(
    cpp_extensions: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Outcome]:
    """Results of runs saved under one optimizer on two ranks and resumed under another on three."""
    folder = tmp_path_factory.mktemp("optimizers")
    names = ("AdamW", CPU, FUSED)
    jobs = [Job(2, "save_toy", {"folder": str(folder / name), "optimizer": name}) for name in names]
    for number, (before, after) in enumerate(CHANGES):
        sources = {"": str(tag_folder(folder / before))}
        arguments = {"sources": sources, "out": str(folder / f"{number}.pt"), "optimizer": after}
        jobs.append(Job(3, "resume_toy", arguments))
    ended = run_jobs_in(folder / "jobs", jobs)
    for save in ended[: len(names)]:
        assert save.codes == [0, 0], save.output
    found = {}
    for number, change in enumerate(CHANGES):
        end, path = ended[len(names) + number], Path(folder / f"{number}.pt")
        resumed = torch.load(path)[""] if path.is_file() else {}
        found[change] = Outcome(end, resumed, torch.load(folder / change[0] / "truth.pt"))
    return found


@pytest.mark.parametrize("change", CHANGES, ids=" to ".join)
def test_state_and_losses_continue(outcomes: dict[tuple[str, str], Outcome], change: tuple[str, str]) -> None:
    outcome = outcomes[change]
    assert_same(outcome)
    assert outcome.resumed["losses"] == pytest.approx(outcome.truth["losses"], rel=1e-5)
