"""Reports: what was rewritten, what was not, and why, as an object, as text and as data."""

from lightint_compile.reporting.report import SCHEMA, Report
from lightint_compile.reporting.section import PassRow, Section

__all__ = ["SCHEMA", "PassRow", "Report", "Section"]
