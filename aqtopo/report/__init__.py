"""Pages: one self-contained HTML page of a run or of an ablation. Needs the extra `report`."""

from aqtopo.report.ablation_page import write_ablation_report
from aqtopo.report.attention import parse_place
from aqtopo.report.run_page import write_report

__all__ = ["parse_place", "write_ablation_report", "write_report"]
