"""A run as one self-contained HTML page."""

from edgeladder.report.page import REPORT, render, write_report
from edgeladder.report.record import RunRecord, read_run

__all__ = ["REPORT", "RunRecord", "read_run", "render", "write_report"]
