import pytest

from aqtopo.distributed.deadlines import DEADLINES_S, read_deadlines


def test_the_environment_changes_single_deadlines() -> None:
    deadlines = read_deadlines({"AQTOPO_DEADLINES": "step=20, first step=1.5"})
    assert deadlines == {**DEADLINES_S, "step": 20.0, "first step": 1.5}
    assert read_deadlines({}) == DEADLINES_S


@pytest.mark.parametrize("text", ["step", "step=", "step=-3", "step=0", "stop=3", "step=1.2.3"])
def test_what_is_no_deadline_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"AQTOPO_DEADLINES: .*The phases are connect, preflight"):
        read_deadlines({"AQTOPO_DEADLINES": text})


def test_fewer_ranks_get_more_time_for_what_they_share_but_not_beyond_what_the_user_says() -> None:
    deadlines = read_deadlines({"AQTOPO_DEADLINES": "step=20"}, work=4.0)
    assert deadlines["validation"] == 4 * DEADLINES_S["validation"]
    assert (deadlines["step"], deadlines["connect"]) == (20.0, DEADLINES_S["connect"])
    assert read_deadlines({}, work=0.5) == DEADLINES_S
