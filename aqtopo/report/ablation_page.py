"""Report page of an ablation: shown differences, variants and learning curves."""

import importlib.metadata
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from aqtopo.ablation.results_file import RUNS, Results, read_results, training_numbers
from aqtopo.checkpoint.files import write_durably
from aqtopo.report.ablation_tables import ContrastTable, contrast_tables, overview, variant_rows
from aqtopo.report.curves import mean_validation_curve, variant_curves
from aqtopo.report.history import History, read_history
from aqtopo.report.run_page import REPORT_FILE, template
from aqtopo.report.text import capitalised
from aqtopo.run_directory.log_file import METRICS_FILE


def write_ablation_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a finished `aqtopo ablate`; return its path.

    Raises:
        ValueError: results or a training's log are missing or damaged.
    """
    content = read_results(folder)
    html = _render(content, read_histories(folder, content), not_compared(folder, content))
    page = folder / REPORT_FILE
    write_durably(page, html)
    return page


def not_compared(folder: Path, content: Results) -> list[str]:
    """Return the variant and seed of trainings in the folder that the results do not contain.

    Raises:
        ValueError: a training's configuration is damaged.
    """
    compared_here = {(one.folder, f"seed{seed}") for one in content.variants for seed in content.seeds}
    others = [place for place in training_numbers(folder) if place not in compared_here]
    return [f"{variant}, {name.replace('seed', 'seed ')}" for variant, name in others]


def read_histories(folder: Path, content: Results) -> dict[str, list[History]]:
    """Read the histories of the compared trainings by variant, one per seed.

    Trainings that the results contain may be missing in the folder.
    """
    found: dict[str, list[History]] = {}
    for one in content.variants:
        paths = [folder / RUNS / one.folder / f"seed{seed}" / METRICS_FILE for seed in content.seeds]
        if histories := [read_history(path) for path in paths if path.is_file()]:
            found[one.variant] = histories
    return found


def _render(content: Results, histories: dict[str, list[History]], others: Sequence[str]) -> str:
    contrasts = contrast_tables(content)
    facts = [
        ("configuration digest", content.config_digest[:16]),
        ("data", content.store),
        ("commit", content.commit or "not known"),
        ("seeds", ", ".join(str(seed) for seed in content.seeds)),
        ("finished", content.created[:16].replace("T", " ") + " UTC"),
        ("platform", content.machine.platform),
        ("cores", "not known" if content.machine.cores is None else str(content.machine.cores)),
    ]
    return template("ablation.html.jinja").render(
        name=content.run,
        simulated=content.simulated,
        source=content.source,
        findings=_findings(contrasts),
        seeds=len(content.seeds),
        factors=[(path, ", ".join(map(_spelled, levels))) for path, levels in content.factors.items()],
        starts=capitalised(content.starts),
        variants=variant_rows(content),
        others=others,
        contrasts=contrasts,
        overview=overview(content),
        together=mean_validation_curve(histories),
        curves=variant_curves(histories) if histories else None,
        facts=facts,
        versions=[(package, version or "not installed") for package, version in content.versions.items()],
        version=importlib.metadata.version("aqtopo"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _spelled(level: object) -> str:
    """Return a level as in a configuration, but strings without quotes."""
    return level if isinstance(level, str) else json.dumps(level)


def _findings(contrasts: Sequence[ContrastTable]) -> str:
    """Return a sentence with the differences that are shown over all pollutants and horizons."""
    shown = [
        f"{contrast.label}: {change.percent}, {change.verdict}"
        for contrast in contrasts
        for change in contrast.overall[:1]
        if change.verdict in ("better", "worse")
    ]
    if not shown:
        return "No difference is shown in the test RMSE of all pollutants and horizons together."
    return f"Shown in the test RMSE of all pollutants and horizons together: {'; '.join(shown)}."
