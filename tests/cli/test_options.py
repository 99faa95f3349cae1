import pytest

from aqtopo.cli.options import repeat_option


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("OUT --years 2016", "OUT --years 2016"),
        ("--years 2016 2017 2018 OUT", "--years 2016 --years 2017 --years 2018 OUT"),
        ("--years 2016 --years 2017 2018", "--years 2016 --years 2017 --years 2018"),
        (
            "--train-years 2016 2017 --seed 3 --years 2018 2019",
            "--train-years 2016 --train-years 2017 --seed 3 --years 2018 --years 2019",
        ),
        ("--seed 3 4", "--seed 3 4"),
        ("--years=2016 2017", "--years=2016 2017"),
        ("", ""),
    ],
)
def test_option_is_repeated_before_each_further_year(given: str, expected: str) -> None:
    assert repeat_option(given.split()) == expected.split()
