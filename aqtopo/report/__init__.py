"""The report: one self-contained HTML page about a run or an ablation. Needs the extra `report`."""

from aqtopo.report.ablation_page import write_ablation_report
from aqtopo.report.comparison import is_ablation
from aqtopo.report.page import write_report
from aqtopo.report.places import parse_place

__all__ = ["is_ablation", "parse_place", "write_ablation_report", "write_report"]
