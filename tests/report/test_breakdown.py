from aqtopo.evaluation.score_record import Entry, Skill
from aqtopo.report.breakdown import break_down


def entry(pollutant: str, persistence: float | None, climatology: float | None) -> Entry:
    skill = Skill(persistence=persistence, climatology=climatology)
    return Entry.model_construct(pollutant=pollutant, skill=skill)


def test_each_pollutant_has_its_rows_areas_before_seasons() -> None:
    strata = {
        "hour": {"0": [entry("pm25", 0.9, 0.9)]},
        "season": {"DJF": [entry("pm25", 0.1, 0.2), entry("o3", 0.3, 0.4)]},
        "area": {
            "all": [entry("pm25", -0.2, 0.005), entry("o3", 0.0, 0.0)],
            "plateau": [entry("pm25", None, 0.5), entry("o3", 0.0, 0.0)],
        },
    }
    particles, ozone = break_down(strata)
    assert (particles.label, ozone.label) == ("PM2.5", "Ozone")
    assert [[place.label for place in group] for group in particles.groups] == [["all", "plateau"], ["DJF"]]
    (whole, plateau), (winter,) = particles.groups
    assert [tint.verdict for tint in whole.tints] == ["worse", "level"]
    assert [tint.verdict for tint in plateau.tints] == ["unknown", "better"]
    assert [tint.skill for tint in winter.tints] == [0.1, 0.2]


def test_scores_without_strata_have_no_tables() -> None:
    assert break_down({}) == ()
