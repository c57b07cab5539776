"""An axis along which some values belong to entries that may be left out: runs of values, one behind the other.

Five remembered frames in front of fourteen others, 880 tokens a frame, are the runs ``5 x 880, 12320``. The number of
entries is not part of a run: with three of them kept, the same runs are ``3 x 880, 12320``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from lightint_compile.passes.ir.fake_values import Size
from lightint_compile.passes.ir.sizes import groups, product, quotient, same, total


class Run(NamedTuple):
    """So many values; of every entry so many, where they are ``of_entries``."""

    size: Size
    of_entries: bool = False


class Runs(NamedTuple):
    """The runs of an axis, all of them ``outer`` times over."""

    runs: tuple[Run, ...]
    outer: Size = 1


Axis: TypeAlias = Runs | Size
"""What is known of an axis: its runs, or of one without entries its size."""

ENTRIES = Runs((Run(1, True),))
"""The entries themselves."""


def extent(of: Axis, entries: Size) -> Size:
    """Values along an axis with so many entries."""
    if not isinstance(of, Runs):
        return of
    return product([of.outer, total(product([size, entries]) if own else size for size, own in of.runs)])


def is_free(of: Axis) -> bool:
    """Whether no value along an axis belongs to an entry."""
    return not isinstance(of, Runs) or not any(run.of_entries for run in of.runs)


def scaled(of: Runs, inner: Size) -> Runs:
    """Every value as so many."""
    return Runs(tuple(Run(product([size, inner]), own) for size, own in of.runs), of.outer)


def divided(of: Runs, inner: Size) -> Runs | None:
    """The inverse of :func:`scaled`; ``None`` where a run is no multiple."""
    parts = [(quotient(size, inner), own) for size, own in of.runs]
    return (
        Runs(tuple(Run(size, own) for size, own in parts if size is not None), of.outer)
        if all(size is not None for size, _ in parts)
        else None
    )


def joined(parts: Sequence[Axis]) -> Runs | None:
    """Axes one behind the other; ``None`` for one whose runs come several times over."""
    found: list[Run] = []
    for part in parts:
        runs = part if isinstance(part, Runs) else Runs((Run(part),))
        if runs.outer != 1:
            return None
        for run in runs.runs:
            if found and not found[-1].of_entries and not run.of_entries:
                run = Run(total([found.pop().size, run.size]))
            if run.size != 0:
                found.append(run)
    return Runs(tuple(found))


class Part(NamedTuple):
    """A range of an axis: its runs, and those in front of its start and of its stop."""

    runs: Runs
    start: Runs
    stop: Runs


def part(of: Runs, start: Size, stop: Size, entries: int) -> Part | None:
    """The range from ``start`` to ``stop``, both counted with all entries; ``None`` where one parts entries."""
    begins, ends = (_place(of, value, entries) for value in (start, stop))
    if of.outer != 1 or begins is None or ends is None:
        return None
    (first, skipped), (last, taken) = begins, ends
    if first == last:
        inside: list[Axis] = [total([taken, -skipped])]
    else:
        head: list[Axis] = [total([of.runs[first].size, -skipped]) if skipped != 0 else Runs((of.runs[first],))]
        inside = [*head, Runs(of.runs[first + 1 : last]), taken]
    found = joined(inside)
    fronts = [joined([Runs(of.runs[:place]), offset]) for place, offset in (begins, ends)]
    assert found is not None and fronts[0] is not None and fronts[1] is not None
    return Part(found, fronts[0], fronts[1])


def cut(of: Runs, sizes: Sequence[Size], entries: int) -> list[Runs] | None:
    """Runs cut into parts of so many values each; ``None`` where a cut parts entries."""
    found, start = [], 0
    for size in sizes:
        stop = total([start, size])
        own = part(of, start, stop, entries)
        if own is None:
            return None
        found.append(own.runs)
        start = stop  # type: ignore[assignment]
    return found


def _place(of: Runs, value: Size, entries: int) -> tuple[int, Size] | None:
    """The run in which a value stands, or begins, and how far in it; ``None`` for one among entries."""
    position: Size = 0
    for number, run in enumerate(of.runs):
        if same(position, value):
            return number, 0
        behind = total([position, extent(Runs((run,)), entries)])
        if all(isinstance(each, int) for each in (position, value, behind)) and position < value < behind:
            return None if run.of_entries else (number, value - position)
        position = behind
    return (len(of.runs), 0) if same(position, value) else None


def regrouped(axes: Sequence[Axis], shape: Sequence[Size], entries: int) -> list[Axis] | None:
    """The axes of a view to ``shape``; ``None`` where it cuts beside the runs."""
    found: list[Axis] = []
    for before, behind in groups([extent(each, entries) for each in axes], list(shape)):
        own = [place for place in before if isinstance(axes[place], Runs)]
        sizes = [shape[place] for place in behind]
        if not own:
            found.extend(sizes)
            continue
        runs = axes[own[0]]
        if len(own) > 1 or not isinstance(runs, Runs):
            return None
        outer, inner = (
            product(
                [extent(axes[place], entries) for place in before if (place < own[0]) is outside and place != own[0]]
            )
            for outside in (True, False)
        )
        dealt = _dealt(Runs(scaled(runs, inner).runs, product([outer, runs.outer])), sizes, entries)
        if dealt is None:
            return None
        found.extend(dealt)
    return found


def _dealt(whole: Runs, sizes: Sequence[Size], entries: int) -> list[Axis] | None:
    """Runs dealt out to axes: the outer ones take their copies, one takes the runs, the inner ones cut these."""
    found: list[Axis] = []
    rest = whole.outer
    for number, size in enumerate(sizes):
        left = quotient(rest, size)
        if size == 1 or (rest != 1 and left is not None):
            found.append(size)
            rest = rest if left is None else left
            continue
        own = divided(Runs(whole.runs, rest), product(sizes[number + 1 :]))
        if own is None or not same(extent(own, entries), size):
            return None
        return [*found, own, *sizes[number + 1 :]]
    return None
