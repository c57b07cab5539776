"""Reports: what was rewritten, what was not, and why, as an object, as text and as data."""

from lightint_compile.report.report import SCHEMA, Report
from lightint_compile.report.section import PassRow, Section

__all__ = ["SCHEMA", "PassRow", "Report", "Section"]
