"""The meaning of axes followed through a graph, found once for all calls that look alike.

A rule compares origins with each other and reads which axis of a tensor of which rank one is, but never the name of the
node that it is of. So what is found at one call is found at every other that looks the same, whose operands' axes mean
the same up to names, but for these names. All that is known of a call's results is kept as a form, in which the names
are numbered, and the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch.fx as fx

from lightint_compile.passes.analysis.grid_axes.axes import Atom, Axes, Axis
from lightint_compile.passes.ir.looks import Looks
from lightint_compile.passes.ir.program import tensor_of

Results = tuple[Axes, ...]
"""The axes of every result of a call."""

Find = Callable[[fx.Node, Callable[[fx.Node], Results]], Results]
"""What is known of a call's results, by what is known of those of its operands."""


class _Known(NamedTuple):
    """What is known of a node's results: the number of a form, and its names in their order.

    ``value`` is the number of the node's value, see :class:`~passes.ir.looks.Look`.
    """

    form: int
    names: tuple[str, ...]
    value: int


_OWN = -1
"""Stands for the name of the node at which something was found, among the numbers of its operands' names."""


class Followed(Mapping[fx.Node, Axes]):
    """The axes of every node that is a tensor, of the first of several results.

    What was found at a call holds for one walk, from the first node to the last: the next one begins with nothing but
    the looks, which are asked of every node again.
    """

    def __init__(self, looks: Looks) -> None:
        self._looks = looks
        self._known: dict[fx.Node, _Known] = {}
        self._forms: dict[Results, int] = {}
        self._form_of: list[Results] = []
        self._rules: dict[object, tuple[int, tuple[int, ...]]] = {}
        self._written: dict[tuple[int, tuple[str, ...]], Results] = {}

    def given(self, node: fx.Node, results: Results) -> None:
        """What is known of ``node`` from elsewhere."""
        self._keep(node, results, self._looks.value(node))

    def follow(self, node: fx.Node, find: Find, *, alike: bool = True) -> None:
        """What follows for ``node`` from its operands.

        Args:
            alike: whether ``find`` reads nothing but the node's look, and the values and results of its operands.
        """
        look, operands = self._looks.of(node), [self._known[source] for source in node.all_input_nodes]
        names, wiring = _numbered(operands)
        key = (look.call, wiring, *[(known.form, known.value) for known in operands])
        rule = self._rules.get(key) if alike else None
        if rule is not None:
            form, sources = rule
            own = tuple([node.name if number == _OWN else names[number] for number in sources])
            self._known[node] = _Known(form, own, look.value)
            return
        known = self._keep(node, find(node, self.results), look.value)
        if alike and {node.name, *names}.issuperset(known.names):
            sources = tuple([_OWN if name == node.name else names.index(name) for name in known.names])
            self._rules[key] = known.form, sources

    def results(self, node: fx.Node) -> Results:
        """The axes of all results of a node."""
        form, names, _ = self._known[node]
        written = self._written.get((form, names))
        if written is None:
            renamed = dict(zip(map(str, range(len(names))), names, strict=True))
            written = self._written[form, names] = _renamed(self._form_of[form], renamed)
        return written

    def names(self, node: fx.Node) -> tuple[str, ...]:
        """The nodes at which the axes of a node's results appeared first, by name."""
        return self._known[node].names

    def _keep(self, node: fx.Node, results: Results, value: int) -> _Known:
        names: dict[str, str] = {}
        for axes in results:
            for axis in axes:
                _collect(axis, names)
        numbered = _renamed(results, names)
        form = self._forms.setdefault(numbered, len(self._forms))
        if form == len(self._form_of):
            self._form_of.append(numbered)
        known = self._known[node] = _Known(form, tuple(names), value)
        return known

    def __getitem__(self, node: fx.Node) -> Axes:
        if node not in self:
            raise KeyError(node)
        return self.results(node)[0]

    def __contains__(self, node: object) -> bool:
        return node in self._known and tensor_of(node) is not None

    def __iter__(self) -> Iterator[fx.Node]:
        return (node for node in self._known if tensor_of(node) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _numbered(operands: Sequence[_Known]) -> tuple[Sequence[str], tuple[int, ...]]:
    """The names that operands have, each once, and which of them each operand has, in its order."""
    if len(operands) == 1:
        return operands[0].names, ()
    numbers: dict[str, int] = {}
    wiring = tuple([numbers.setdefault(name, len(numbers)) for known in operands for name in known.names])
    return tuple(numbers), wiring


def _collect(axis: Axis, names: dict[str, str]) -> None:
    """Number the names in an axis that have no number yet, by first appearance."""
    for atom in axis:
        if atom.origin is not None:
            names.setdefault(atom.origin.node, str(len(names)))
        for inner in (*atom.parts, *atom.planes, atom.plane, (atom.parent,) if atom.parent is not None else ()):
            _collect(inner, names)


def _renamed(results: Results, names: Mapping[str, str]) -> Results:
    return tuple([tuple([_axis(axis, names) for axis in axes]) for axes in results])


def _axis(axis: Axis, names: Mapping[str, str]) -> Axis:
    return tuple([_atom(atom, names) for atom in axis])


def _atom(atom: Atom, names: Mapping[str, str]) -> Atom:
    size, role, origin, start, parts, planes, plane, parent, note = atom
    return Atom(
        size,
        role,
        None if origin is None else origin._replace(node=names[origin.node]),
        start,
        tuple([_axis(part, names) for part in parts]) if parts else (),
        tuple([_axis(each, names) for each in planes]) if planes else (),
        _axis(plane, names) if plane else (),
        None if parent is None else _atom(parent, names),
        note,
    )
