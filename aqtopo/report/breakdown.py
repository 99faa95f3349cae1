"""Skill where it can be told apart: by elevation band, region and season, against each reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aqtopo.evaluation.cases import REFERENCES
from aqtopo.evaluation.score_record import Entry
from aqtopo.report.scoreboard import Tint, capitalised
from aqtopo.variables import VARIABLES

STRATA = ("area", "season")
"""Those that the page shows; 24 hours would be a wall of figures."""


@dataclass(frozen=True)
class Place:
    """One row: an area or a season, and the skill at every horizon against every reference."""

    label: str
    tints: tuple[Tint, ...]


@dataclass(frozen=True)
class Breakdown:
    """One pollutant's table.

    Attributes:
        label: what readers call the pollutant.
        groups: rows that belong together, areas before seasons.
    """

    label: str
    groups: tuple[tuple[Place, ...], ...]


def break_down(strata: Mapping[str, Mapping[str, Sequence[Entry]]]) -> tuple[Breakdown, ...]:
    """A table for every pollutant; none where nothing was scored apart.

    Args:
        strata: as in `scores.json`: by stratum and label, an entry a pollutant and horizon.
    """
    known = [strata[name] for name in STRATA if strata.get(name)]
    if not known:
        return ()
    entries = next(iter(known[0].values()))
    pollutants = dict.fromkeys(entry.pollutant for entry in entries)
    return tuple(
        Breakdown(
            capitalised(VARIABLES[pollutant].long_name),
            tuple(tuple(_place(label, rows, pollutant) for label, rows in each.items()) for each in known),
        )
        for pollutant in pollutants
    )


def _place(label: str, entries: Sequence[Entry], pollutant: str) -> Place:
    rows = [entry for entry in entries if entry.pollutant == pollutant]
    skills = [getattr(entry.skill, name) for entry in rows for name in REFERENCES]
    return Place(label, tuple(Tint(float("nan") if skill is None else skill) for skill in skills))
