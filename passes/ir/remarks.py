"""What the compiler did, did not do, and why, as data.

After LLVM's optimisation remarks: a pass never prints; it returns remarks, and the report, the log and the artifact on
disk are three readers of the same list.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

import torch.fx as fx


class RemarkKind(StrEnum):
    """What a remark reports.

    ``APPLIED``: a rewrite. ``MISSED``: a near miss, with the reason. ``ANALYSIS``: something that was found out.
    ``FAILURE``: a fault, and what runs instead.
    """

    APPLIED = "applied"
    MISSED = "missed"
    ANALYSIS = "analysis"
    FAILURE = "failure"


class Numerics(StrEnum):
    """What a rewrite may do to the numbers.

    ``EXACT``: the same mathematics; rounding may differ because other kernels run. ``REASSOCIATES``: the order of
    operations changes. ``APPROXIMATE``: the result changes, under a guard, and is reported.
    """

    EXACT = "exact"
    REASSOCIATES = "reassociates"
    APPROXIMATE = "approximate"


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One statement about one place (or ``count`` identical places) in the user's model.

    Attributes:
        rule: the variant within the pass, for example the form that matched.
        message: one sentence for a person.
        module_path: the module the nodes came from, empty when unknown.
        source: the user's ``file:line``, empty when unknown.
        hint: for a miss, the smallest change to the user's code that would make it match.
        args: bindings as plain data (ints, floats, strings, lists), for the dict form.
        flops_before, flops_after: floating-point operations of the place, ``None`` when not counted.
        count: how many identical places this remark covers.
    """

    kind: RemarkKind
    pass_name: str
    rule: str
    message: str
    module_path: str = ""
    source: str = ""
    hint: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    flops_before: int | None = None
    flops_after: int | None = None
    numerics: Numerics | None = None
    count: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The remark as plain data, with empty fields left out."""
        data = dataclasses.asdict(self) | {"kind": str(self.kind), "numerics": self.numerics and str(self.numerics)}
        return {key: value for key, value in data.items() if value not in (None, "", {})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Remark:
        """The inverse of :meth:`to_dict`."""
        fields = {"rule": "", "message": "", **data, "kind": RemarkKind(data["kind"])}
        if "numerics" in fields:
            fields["numerics"] = Numerics(fields["numerics"])
        return cls(**fields)


def merged(remarks: Iterable[Remark]) -> list[Remark]:
    """Fold remarks that say the same thing of sibling modules (``blocks.0``, ``blocks.1``, ...) into one with a count.

    FLOPs add up; the module path keeps the indices that varied as ``*``.
    """
    rows: dict[tuple[Any, ...], list[Remark]] = {}
    for remark in remarks:
        pattern = generic_path(remark.module_path)
        key = (remark.kind, remark.pass_name, remark.rule, remark.message, pattern, remark.source, remark.numerics)
        rows.setdefault(key, []).append(remark)
    return [_fold(group) for group in rows.values()]


def _fold(group: list[Remark]) -> Remark:
    if len(group) == 1:
        return group[0]

    def total(name: str) -> int | None:
        values = [getattr(remark, name) for remark in group]
        return None if any(value is None for value in values) else sum(values)

    paths = {remark.module_path for remark in group}
    return dataclasses.replace(
        group[0],
        module_path=paths.pop() if len(paths) == 1 else generic_path(group[0].module_path),
        count=sum(remark.count for remark in group),
        flops_before=total("flops_before"),
        flops_after=total("flops_after"),
    )


def generic_path(module_path: str) -> str:
    """``blocks.3.attn1`` as ``blocks.*.attn1``: the same place in every repeated block."""
    return ".".join("*" if part.isdigit() else part for part in module_path.split("."))


def module_path_of(node: fx.Node) -> str:
    """The innermost module that made ``node``, as the user would write it (``blocks.3.attn1``); empty when unknown."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return clean_path(str(next(reversed(stack.values()))[0]))


#: Words that Dynamo puts between the names a user wrote.
_PLUMBING = frozenset({"__dict__", "_modules", "_parameters", "_buffers"})
_PATH_WORD = re.compile(r"[^\[\]'\".]+")


@lru_cache(maxsize=4096)  # every node of a block has its paths
def clean_path(path: str, *, of_module: bool = True) -> str:
    """A module or parameter path as the user writes it: ``blocks.3.attn1.to_q.weight``.

    Spellings seen in practice: ``L['self'].blocks[3]`` and ``L['self'].__dict__['_modules']['blocks'].0`` from Dynamo,
    where the first local is the module itself, and ``blocks.3`` from export. A trailing ``@2`` (third call of one
    module) goes. With ``of_module=False`` the path is an argument's: ``L['kwargs']['hidden_states']`` is
    ``hidden_states``.
    """
    words = _PATH_WORD.findall(path.split("@")[0])
    if words[:1] in (["L"], ["G"]):
        in_module = of_module or words[1:2] in (["self"], ["kwargs"]) or not _PLUMBING.isdisjoint(words)
        words = words[2:] if in_module else words[1:]
    return ".".join(word for word in words if word not in _PLUMBING)


def source_of(node: fx.Node) -> str:
    """The user's ``file:line`` that made ``node``: the innermost frame outside torch."""
    trace = node.meta.get("stack_trace")
    if not trace:
        return ""
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith('File "')]
    for frame in reversed(frames):
        file, _, rest = frame.removeprefix('File "').partition('", line ')
        if "/torch/" not in file:
            return f"{file}:{rest.split(',')[0]}"
    return ""


def at(node: fx.Node) -> dict[str, Any]:
    """The place of ``node`` as keyword arguments for :class:`Remark`."""
    return {"module_path": module_path_of(node), "source": source_of(node)}


@dataclass(frozen=True)
class Miss:
    """Where and why a rewrite was left undone.

    Attributes:
        node: where it was noticed.
        reason: what prevents the rewrite.
        hint: the smallest change that would remove it; empty where there is none.
    """

    node: fx.Node
    reason: str
    hint: str = ""

    def remark(self, pass_name: str, rule: str) -> Remark:
        """The miss as a remark of a pass."""
        return Remark(
            kind=RemarkKind.MISSED,
            pass_name=pass_name,
            rule=rule,
            message=self.reason,
            hint=self.hint,
            **at(self.node),
        )
