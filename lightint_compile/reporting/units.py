"""Numbers as a person reads them."""

from __future__ import annotations


def counted(value: float, unit: str) -> str:
    """``2.5 GFLOP`` of 2.5e9 and ``FLOP``; ``B`` for bytes, in powers of ten."""
    for prefix in ("", "K", "M", "G", "T"):
        if abs(value) < 1000:
            return f"{value:.4g} {prefix}{unit}"
        value /= 1000
    return f"{value:.4g} P{unit}"


def changed(before: float, after: float) -> str:
    """By how much: ``-12.5 %``, ``=`` where it is the same."""
    if before == after:
        return "="
    return f"{100 * (after - before) / before:+.1f} %" if before else "new"
