from aqtopo.evaluation.exceedances import NO_MEANS
from aqtopo.evaluation.score_record import Exceedance, Spectrum
from aqtopo.report.days import alarms, no_alarms, sharpness


def exceedance(forecast: str, hits: int, csi: float | None, negatives: int = 0) -> Exceedance:
    return Exceedance(
        forecast=forecast,
        pollutant="pm25",
        horizon=12,
        limit=75.0,
        hits=hits,
        misses=0,
        false_alarms=0,
        correct_negatives=negatives,
        csi=csi,
    )


def three(hits: int, model: float | None) -> list[Exceedance]:
    return [
        exceedance("model", hits, model),
        exceedance("persistence", hits, 0.5),
        exceedance("climatology", hits, None),
    ]


def test_a_line_has_the_numbers_of_the_model_and_the_index_of_all() -> None:
    (line,) = alarms(three(1200, 0.6))
    assert (line.label, line.numbers) == ("PM2.5 above 75", ("1,200", "0", "0"))
    assert (line.csi, line.best) == (("0.60", "0.50", "n/a"), True)
    assert not alarms(three(1200, 0.4))[0].best


def test_a_limit_that_nothing_came_near_has_no_line() -> None:
    assert alarms(three(0, None)) == ()


def test_why_no_line_is_there_is_said() -> None:
    assert no_alarms([]) == no_alarms(three(1200, 0.6)) == ""
    assert no_alarms(three(0, None)) == NO_MEANS
    assert "none was forecast" in no_alarms([exceedance("model", 0, None, negatives=9)])


def test_sharpness_is_that_of_the_model_in_the_order_of_the_other_tables() -> None:
    records = [
        Spectrum(forecast=name, pollutant=pollutant, horizon=24, resolved_km=222.4, short_waves=None)
        for name in ("climatology", "model")
        for pollutant in ("pm10", "o3", "pm25")
    ]
    *others, line = sharpness(records)
    assert [other.label for other in others] == ["PM2.5", "PM10"]
    assert (line.label, line.resolved_km, line.short_waves) == ("Ozone", "222", "n/a")
