"""What the stretches of an axis are, by its factors: grids of frames, rows and columns, and tokens without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightint_compile.passes.analysis.axes.factors import extent
from lightint_compile.passes.analysis.grid_axes.axes import ROLES, Atom, Axis
from lightint_compile.passes.analysis.token_axis import Grid, Span, TokenAxis
from lightint_compile.passes.ir.fake_values import Size


def parts_of(axis: Axis) -> list[Axis]:
    """The axes that an axis joins, as far as it is known to join some; itself otherwise."""
    if len(axis) == 1 and axis[0].parts:
        return [inner for part in axis[0].parts for inner in parts_of(part)]
    return [axis]


def spans_of(axis: Axis) -> Iterator[Span]:
    """The stretches of an axis; neighbours without a grid stay apart when they come from different places."""
    if len(axis) == 1 and axis[0].parts:
        for part in axis[0].parts:
            yield from spans_of(part)
        return
    grid = _grid(axis)
    if grid is not None:
        yield Span(grid.tokens, grid)
        return
    sources = tuple(dict.fromkeys(atom.origin.node for atom in axis if atom.origin and atom.size != 1))
    yield Span(extent(axis), None, sources, _note(axis), any(atom.role == "kept" for atom in axis))


def folded(axis: Axis) -> tuple[Size, TokenAxis] | None:
    """The size of a batch that is folded into an axis, ``view(B * L, ...)``, and the stretches of one element."""
    atoms = tuple(atom for atom in axis if atom.size != 1)
    grid = [atom.parts or atom.role in ROLES or bool(atom.origin and atom.origin.rank >= 5) for atom in atoms]
    place = len(atoms) - 1 if atoms and atoms[-1].parts else len(atoms) - 3
    if place <= 0 or not all(grid[place:]):
        return None
    return extent(atoms[:place]), TokenAxis(tuple(spans_of(atoms[place:])))


def _note(axis: Axis) -> str:
    apart = folded(axis)
    if apart is not None and apart[1].grids:
        return f"{apart[0]} times {apart[1]} lie one behind the other"
    atoms = [atom for atom in axis if atom.size != 1]
    roles = [atom.role for atom in atoms if atom.role in ROLES]
    if roles:
        return f"it holds {' and '.join(roles)} only"
    if len(atoms) == 1 and atoms[0].origin and atoms[0].origin.rank >= 5:
        return f"it holds axis {atoms[0].origin.axis} of {atoms[0].origin.node} only"
    return next((atom.note for atom in atoms if atom.note), "")


def _grid(axis: Axis) -> Grid | None:
    """The grid that an axis is, by its three atoms in order."""
    atoms = [atom for atom in axis if atom.size != 1 or atom.role in ROLES]
    if [atom.role for atom in atoms] == ["height", "width"] and _one_source(atoms):
        first, (height, width) = None, atoms
    else:
        atoms = atoms if len(atoms) == 3 else [atom for atom in atoms if atom.size != 1]
        if len(atoms) != 3 or not is_volume(atoms):
            return None
        first, height, width = atoms
    seed = height.origin.node if height.origin else ""
    return Grid(
        first.size if first else 1,
        height.size,
        width.size,
        seed,
        first.start if first else 0,
        (first.origin if first else None, height.origin, width.origin),
    )


def _one_source(atoms: Sequence[Atom]) -> bool:
    return len({atom.origin.node for atom in atoms if atom.origin}) == 1


def is_volume(atoms: Sequence[Atom]) -> bool:
    """Whether three atoms are frames, height and width.

    Three forms: roles that a 3-D convolution gave; a frame axis in front of a 2-D convolution's plane; and three axes
    in their order of one tensor with at least five (or three position vectors), which only a video has.
    """
    roles = [atom.role for atom in atoms]
    first, *plane = atoms
    if any(atom.parts or atom.origin is None for atom in atoms):
        return False
    if roles == list(ROLES):
        return _one_source(atoms)
    if roles[1:] == ["height", "width"]:
        return first.origin is not None and first.origin.rank >= 5 and _one_source(plane)
    if roles == ["position"] * 3:
        return True
    origins = [atom.origin for atom in atoms if atom.origin]
    ordered = 0 < origins[0].axis < origins[1].axis < origins[2].axis
    return not any(roles) and _one_source(atoms) and origins[0].rank >= 5 and ordered
