import pytest

from aqtopo.training.watchdog import DEADLINES_S, Words, _culprits, read_deadlines


def test_the_environment_changes_single_deadlines() -> None:
    deadlines = read_deadlines({"AQTOPO_DEADLINES": "step=20, first step=1.5"})
    assert deadlines == {**DEADLINES_S, "step": 20.0, "first step": 1.5}
    assert read_deadlines({}) == DEADLINES_S


@pytest.mark.parametrize("text", ["step", "step=", "step=-3", "step=0", "stop=3", "step=1.2.3"])
def test_what_is_no_deadline_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"AQTOPO_DEADLINES: .*The phases are connect, preflight"):
        read_deadlines({"AQTOPO_DEADLINES": text})


def words(entered: int, beat: int, failure: str = "") -> Words:
    return Words("nid1", 7, f"step {entered}", entered, beat, failure)


def test_a_failure_is_to_blame_before_silence_and_silence_before_lagging() -> None:
    before = {0: words(5, 1), 1: words(5, 1), 2: words(4, 1), 3: words(5, 1)}
    lagging = {rank: words(said.entered, 2) for rank, said in before.items()}
    assert _culprits(before, lagging, 0) == "is behind: rank 2 (on nid1, process 7, in `step 4`)"
    silent = lagging | {1: before[1]}
    assert _culprits(before, silent, 0) == "does not answer: rank 1 (on nid1, process 7, in `step 5`)"
    failed = silent | {3: words(5, 2, "OSError: gone")}
    assert _culprits(before, failed, 0) == "failed: rank 3 (on nid1, process 7, in `step 5`): OSError: gone"


def test_a_rank_never_heard_of_is_silent_and_nobody_is_blamed_for_nothing() -> None:
    assert (
        _culprits({0: None, 1: None}, {0: None, 1: None}, 0) == "does not answer: rank 1 (not heard of yet)"
    )
    assert _culprits({0: words(3, 1), 1: words(3, 1)}, {0: words(3, 2), 1: words(3, 2)}, 0) == ""


def test_a_keeper_that_does_not_answer_is_to_blame_itself() -> None:
    assert "rank 0, which keeps" in _culprits({0: None}, None, 1)
