"""Which pass makes a result differ, then which site of it; and where the passes do not, which region Inductor does."""

from lightint_compile.bisecting.judging import Judge, Tolerance, Verdict
from lightint_compile.bisecting.search import Finding, bisect

__all__ = ["Finding", "Judge", "Tolerance", "Verdict", "bisect"]
