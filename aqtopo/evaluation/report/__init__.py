"""The report: one self-contained HTML page about a run. Needs the extra `report` (jinja2, matplotlib)."""

from aqtopo.evaluation.report.page import write_report

__all__ = ["write_report"]
