from aqtopo.training.watchdog import Words, _culprits

NOBODY = "no other rank is silent, behind or has failed"


def words(entered: int, beat: int) -> Words:
    return Words("nid1", 7, f"step {entered}", entered, beat)


def test_silence_is_to_blame_before_lagging() -> None:
    before = {0: words(5, 1), 1: words(5, 1), 2: words(4, 1), 3: words(5, 1)}
    lagging = {rank: words(said.entered, 2) for rank, said in before.items()}
    assert _culprits(before, lagging, 0) == "is behind: rank 2 (on nid1, process 7, in `step 4`)"
    silent = lagging | {1: before[1]}
    assert _culprits(before, silent, 0) == "does not answer: rank 1 (on nid1, process 7, in `step 5`)"


def test_a_rank_never_heard_of_is_silent_and_nobody_is_blamed_for_nothing() -> None:
    assert (
        _culprits({0: None, 1: None}, {0: None, 1: None}, 0) == "does not answer: rank 1 (not heard of yet)"
    )
    assert _culprits({0: words(3, 1), 1: words(3, 1)}, {0: words(3, 2), 1: words(3, 2)}, 0) == NOBODY


def test_a_keeper_that_does_not_answer_is_to_blame_itself() -> None:
    assert "rank 0, which keeps" in _culprits({0: None}, None, 1)
