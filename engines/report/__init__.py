"""report.json and report.html of an artifact, and the same numbers on the console."""

from engines.report.console import show
from engines.report.page import NAME_HTML, NAME_JSON, read_report, write_page, write_report

__all__ = ["NAME_HTML", "NAME_JSON", "show", "read_report", "write_page", "write_report"]
