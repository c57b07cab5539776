"""Functions that keep what they computed in a dictionary of their module, and empty it when it is full.

``entry = TABLES.get(key)``, ``if entry is None:`` compute it, ``if len(TABLES) >= MOST:`` drop one, ``TABLES[key] =
entry``. By the author's own word any entry may be gone at any time, and what is computed then is as good. That holds
where nobody else reads the dictionary, and where what is computed is kept on a miss alone. The source of the whole
module is read for that: each place that names the dictionary is of a known kind, or it is no such memo.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.ClassDef)
_DROP = frozenset({"pop", "popitem", "clear"})
_FULL = (ast.GtE, ast.Gt, ast.Eq)
_ENDS = (ast.Return, ast.Raise, ast.Continue)


@dataclass(frozen=True)
class Uses:
    """How a module uses a dictionary of its own.

    Attributes:
        memos: the first lines of the functions that keep what they computed in it, decorators included.
        other: the first line where it is used in a way that does not go with that; 0 where there is none.
    """

    memos: frozenset[int]
    other: int = 0


def uses_of(module: ast.Module, name: str) -> Uses:
    """How ``module`` uses what it calls ``name`` at its top level."""
    inside = _Parents(module)
    places: dict[_Function, list[ast.Name]] = {}
    other, defined = [line for node in ast.walk(module) for line in _bound_otherwise(node, name)], 0
    for node in ast.walk(module):
        if not isinstance(node, ast.Name) or node.id != name:
            continue
        scope = inside.scope(node)
        if isinstance(scope, _Function) and isinstance(node.ctx, ast.Load):
            places.setdefault(scope, []).append(node)
        elif scope is module and isinstance(node.ctx, ast.Store) and not defined:
            defined = node.lineno
        else:
            other.append(node.lineno)
    memos = []
    for function, found in places.items():
        if all(_is_size(node, inside) or _is_emptied(node, inside) for node in found):
            continue
        memo = _Memo(found, inside)
        memos += [_first_line(function)] if memo.is_complete() else []
        other += memo.other if memo.is_complete() else [found[0].lineno]
    return Uses(frozenset(memos), min(other, default=0))


def _bound_otherwise(node: ast.AST, name: str) -> Iterator[int]:
    """Lines that give the name, or the dictionary under it, another meaning."""
    if isinstance(node, (ast.Global, ast.Nonlocal)) and name in node.names:
        yield node.lineno
    if isinstance(node, ast.arg) and node.arg == name:
        yield node.lineno
    if isinstance(node, (ast.Import, ast.ImportFrom)) and any(
        (each.asname or each.name) == name for each in node.names
    ):
        yield node.lineno


class _Parents:
    """What a node stands in."""

    def __init__(self, module: ast.Module) -> None:
        self._of = {child: node for node in ast.walk(module) for child in ast.iter_child_nodes(node)}

    def __getitem__(self, node: ast.AST) -> ast.AST:
        return self._of[node]

    def scope(self, node: ast.AST) -> ast.AST:
        """The function whose code a node is; the module at its top level, and what is neither."""
        return next(each for each in self.around(node) if isinstance(each, (_Function, ast.Module, *_SCOPES)))

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self._of:
            node = self._of[node]
            yield node

    def branches(self, node: ast.AST) -> Iterator[tuple[ast.AST, list[ast.stmt], int]]:
        """``(whose, block, place)``: the blocks around a node, and where in them it is."""
        for each in self.around(node):
            for block in (getattr(each, field, None) for field in ("body", "orelse", "finalbody")):
                if isinstance(block, list) and node in block:
                    yield each, block, block.index(node)
            if isinstance(each, _Function):
                return
            node = each


def _first_line(function: _Function) -> int:
    return min([function.lineno, *(each.lineno for each in function.decorator_list)])


def _is_size(node: ast.AST, inside: _Parents) -> bool:
    call = inside[node]
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "len"


def _called(node: ast.AST, inside: _Parents) -> str:
    """The method of a name that is called: ``D.get(...)`` is ``get``."""
    attribute = inside[node]
    call = inside[attribute]
    return attribute.attr if isinstance(attribute, ast.Attribute) and getattr(call, "func", None) is attribute else ""


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_statement(node: ast.AST, inside: _Parents) -> bool:
    return isinstance(inside[inside[inside[node]]], ast.Expr)


def _is_emptied(node: ast.AST, inside: _Parents) -> bool:
    return _called(node, inside) == "clear" and _is_statement(node, inside)


class _Memo:
    """The uses of a dictionary in one function.

    Attributes:
        other: the lines of those that a memo has not.
    """

    def __init__(self, places: list[ast.Name], inside: _Parents) -> None:
        self._inside, self._places = inside, places
        self._sizes = {inside[node] for node in places if _is_size(node, inside)}
        self._entries = {name for node in places for name in self._entry_of(node)}
        kinds = {node: self._kind(node) for node in places}
        self._kinds = set(kinds.values())
        self.other = [node.lineno for node, kind in kinds.items() if not kind]

    def is_complete(self) -> bool:
        """Whether the function asks, keeps, bounds and drops."""
        return {"asked", "kept", "size", "dropped"} <= self._kinds

    def _kind(self, node: ast.Name) -> str:
        """What is done with the dictionary there; empty for what no memo does."""
        around = self._inside[node]
        if around in self._sizes:
            return "size"
        if self._asks(around) or any(True for _ in self._entry_of(node)):
            return "asked"
        if isinstance(around, ast.Subscript) and isinstance(around.ctx, ast.Store):
            return "kept" if self._is_kept_on_a_miss(around) else ""
        if isinstance(around, ast.Subscript) and isinstance(around.ctx, ast.Load):
            return "read" if self._is_on(True, around) or self._is_just_kept(around) else ""
        method = _called(node, self._inside)
        if method == "move_to_end" and _is_statement(node, self._inside):
            return "moved"
        return self._kind_when_full(node, method) if self._is_when_full(node) else ""

    def _kind_when_full(self, node: ast.Name, method: str) -> str:
        """An entry is dropped, or keys are looked through for one to drop."""
        if isinstance(self._inside[node], ast.Subscript) or (method in _DROP and _is_statement(node, self._inside)):
            return "dropped"
        return "searched" if method in ("", "keys") else ""

    def _entry_of(self, node: ast.AST) -> Iterator[str]:
        """``entry`` of ``entry = D.get(key)``."""
        if _called(node, self._inside) != "get":
            return
        call = self._inside[self._inside[node]]
        holder = self._inside[call]
        target: ast.AST | None = holder.target if isinstance(holder, (ast.NamedExpr, ast.AnnAssign)) else None
        if isinstance(holder, ast.Assign) and len(holder.targets) == 1:
            target = holder.targets[0]
        if isinstance(target, ast.Name) and isinstance(call, ast.Call) and all(map(_is_none, call.args[1:])):
            yield target.id

    def _asks(self, node: ast.AST) -> bool:
        """``key in D``, ``key not in D``."""
        if not isinstance(node, ast.Compare) or len(node.ops) != 1:
            return False
        return isinstance(node.ops[0], (ast.In, ast.NotIn)) and node.comparators[0] in self._places

    def _told(self, test: ast.AST) -> bool | None:
        """Whether a test is true of a hit; ``None`` where it asks something else."""
        if not isinstance(test, ast.Compare) or len(test.ops) != 1:
            return None
        operation = test.ops[0]
        if self._asks(test):
            return isinstance(operation, ast.In)
        entry = test.left.target if isinstance(test.left, ast.NamedExpr) else test.left
        is_entry = isinstance(entry, ast.Name) and entry.id in self._entries
        known = is_entry and _is_none(test.comparators[0]) and isinstance(operation, (ast.Is, ast.IsNot))
        return isinstance(operation, ast.IsNot) if known else None

    def _is_on(self, hit: bool, node: ast.AST) -> bool:
        """Whether a place is got to on a hit alone, or on a miss alone."""
        for around, block, place in self._inside.branches(node):
            if isinstance(around, ast.If) and self._told(around.test) is (hit if block is around.body else not hit):
                return True
            left = [each for each in block[:place] if isinstance(each, ast.If) and isinstance(each.body[-1], _ENDS)]
            if any(self._told(each.test) is (not hit) for each in left):
                return True
        return False

    def _is_kept_on_a_miss(self, held: ast.Subscript) -> bool:
        assigned = self._inside[held]
        return isinstance(assigned, ast.Assign) and len(assigned.targets) == 1 and self._is_on(False, held)

    def _is_just_kept(self, read: ast.Subscript) -> bool:
        """``D[key]`` right behind ``if key not in D:`` whose last statement is ``D[key] = value``."""
        _, block, place = next(self._inside.branches(read))
        before = block[place - 1] if place else None
        if not isinstance(before, ast.If) or before.orelse or self._told(before.test) is not False:
            return False
        last, reader = before.body[-1], block[place]
        kept = last.targets[0] if isinstance(last, ast.Assign) else None
        if not isinstance(kept, ast.Subscript) or kept.value not in self._places:
            return False
        is_alone = isinstance(reader, (ast.Return, ast.Assign)) and reader.value is read
        same_key = isinstance(kept.slice, ast.Name) and ast.dump(kept.slice) == ast.dump(read.slice)
        return is_alone and same_key

    def _is_when_full(self, node: ast.AST) -> bool:
        """Inside of ``if len(D) >= most:``, or of a loop while it is."""
        for around, block, _ in self._inside.branches(node):
            test = around.test if isinstance(around, (ast.If, ast.While)) else None
            if not isinstance(test, ast.Compare) or len(test.ops) != 1 or block is getattr(around, "orelse", None):
                continue
            if isinstance(test.ops[0], _FULL) and self._sizes.intersection(ast.walk(test.left)):
                return True
        return False
