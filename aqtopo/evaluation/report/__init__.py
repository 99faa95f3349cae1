"""The report: one self-contained HTML page about a run or an ablation. Needs the extra `report`."""

from aqtopo.evaluation.report.ablation_page import write_ablation_report
from aqtopo.evaluation.report.comparison import is_ablation
from aqtopo.evaluation.report.page import write_report
from aqtopo.evaluation.report.places import parse_place

__all__ = ["is_ablation", "parse_place", "write_ablation_report", "write_report"]
