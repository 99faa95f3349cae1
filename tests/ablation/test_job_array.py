import pytest

from aqtopo.ablation.job_array import spell_tasks


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0-1"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8")],
)
def test_tasks_are_spelled_as_sbatch_takes_them(numbers: list[int], text: str) -> None:
    assert spell_tasks(numbers) == text
