"""Taking the memory out of the programs of a compiled module, and putting it into those of an equal one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch._dynamo.eval_frame import OptimizedModule

from lightint_compile.compiled import CompiledGraph, parameters_of
from lightint_compile.errors import InputError, StateError
from lightint_compile.passes.ir.decision_points import RecallPoint
from lightint_compile.runtime.decisions import Decisions
from lightint_compile.runtime.planner import Planner, now
from lightint_compile.world_state.model import Model, check_model, model_of

Memory: TypeAlias = dict[str, Any]
"""``model``: see :mod:`.model`. ``programs``: of each program its options, input sizes, policy, and what it keeps.
``planners``: by policy, what was decided. ``clock``: when the copy was made."""

_HOW = ("delegate", "strict", "require")
"""Options that change how a program is made, and not what it decides."""

_CALL = "call the module once with inputs as the next chunk has them, and load the state then"


@dataclass(frozen=True)
class _Program:
    """One program of a compiled module.

    Attributes:
        options: those that differ from their defaults.
        sizes: of the inputs that are no weights, by name: dtype and sizes, ``None`` for those that may change.
    """

    options: dict[str, Any]
    sizes: dict[str, tuple[str, tuple[int | None, ...]]]
    decisions: Decisions | None

    @classmethod
    def of(cls, graph: CompiledGraph) -> _Program:
        options = {name: value for name, value in graph.section.options.items() if name not in _HOW}
        decisions = graph.driver.decisions if graph.driver is not None else None
        return cls({**options, "setting": graph.setting}, dict(graph.sizes), decisions)

    @property
    def policy(self) -> dict[str, Any] | None:
        policy = self.decisions.policy if self.decisions is not None else None
        return None if policy is None else policy.to_dict()

    def state(self) -> dict[str, Any]:
        keeping = self.decisions.keeping if self.decisions is not None else None
        kept = [] if keeping is None else keeping.state()
        return {"options": self.options, "sizes": self.sizes, "policy": self.policy, "kept": kept}

    def difference(self, sizes: Mapping[str, Any]) -> str:
        """Where inputs of these sizes are none of this program's; empty where they may be."""
        shared = [name for name in self.sizes if name in sizes]
        for name in shared:
            (mine, here), (theirs, there) = self.sizes[name], sizes[name]
            same = mine == theirs and len(here) == len(there)
            if not same or any(None not in pair and pair[0] != pair[1] for pair in zip(here, there, strict=True)):
                return f"{name} is {mine}{_shape(here)} here and {theirs}{_shape(there)} in the state"
        return "" if shared else "no input has the same name"


def _shape(sizes: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in sizes)}]"


def state_of(compiled: Any) -> Memory:
    """What ``compiled`` remembers, copied."""
    programs, parameters = _programs(compiled), parameters_of(compiled)
    planners = [(policy, planner.state()) for policy, planner in _planners(programs, parameters) if planner is not None]
    return {
        "model": model_of(_subject(compiled), parameters),
        "programs": [program.state() for program in programs],
        "planners": planners,
        "clock": now(),
    }


def restore(compiled: Any, memory: Memory) -> None:
    """Let ``compiled`` remember what ``memory`` says and nothing else, or raise and change nothing."""
    programs, parameters = _programs(compiled), parameters_of(compiled)
    check_model(Model(**memory["model"]), Model(**model_of(_subject(compiled), parameters)))
    _check_options(programs, memory["programs"])
    _check_sizes(programs, memory["programs"])
    planners = list(_planners(programs, parameters))
    decided = [(policy, state) for policy, state in memory["planners"] if state["rollouts"]]
    chosen = [(_planner(planners, policy), state) for policy, state in decided]
    kept = [(_home(programs, each), each["kept"]) for each in memory["programs"] if each["kept"]]
    later = now() - memory["clock"]
    for _, planner in planners:
        planner.reset()
    for program in programs:
        if program.decisions is not None and program.decisions.keeping is not None:
            program.decisions.keeping.reset()
    for planner, state in chosen:
        planner.restore(state, later)
    for decisions, state in kept:
        assert decisions.keeping is not None
        decisions.keeping.restore(state)


def _programs(compiled: Any) -> list[_Program]:
    return [_Program.of(graph) for graph in CompiledGraph.of(compiled)]


def _subject(compiled: Any) -> Any:
    return compiled._orig_mod if isinstance(compiled, OptimizedModule) else compiled


def _planners(programs: Sequence[_Program], parameters: Any) -> Iterator[tuple[dict[str, Any], Planner]]:
    """Each planner once, with its policy."""
    seen: set[int] = set()
    for program in programs:
        planner = program.decisions.planner_of(parameters) if program.decisions is not None else None
        if planner is not None and program.policy is not None and id(planner) not in seen:
            seen.add(id(planner))
            yield program.policy, planner


def _planner(planners: Sequence[tuple[dict[str, Any], Planner]], policy: Mapping[str, Any]) -> Planner:
    for known, planner in planners:
        if known == policy:
            return planner
    why = "the state holds decisions of a program that is not compiled here"
    raise StateError("the module was not called as the state's world was", why=why, fix=_CALL)


def _home(programs: Sequence[_Program], state: Mapping[str, Any]) -> Decisions:
    """What takes the kept values of a program: an equal one, or one whose sizes hold these."""
    fitting = [each for each in programs if each.policy == state["policy"] and not each.difference(state["sizes"])]
    fitting.sort(key=lambda each: each.sizes != state["sizes"])
    for decisions in (each.decisions for each in fitting):
        if decisions is not None and all(_takes(decisions, store["pools"]) for store in state["kept"]):
            return decisions
    why = "the state holds keys and values of a program that is not compiled here"
    raise StateError("the module was not called as the state's world was", why=why, fix=_CALL)


def _takes(decisions: Decisions, pools: Mapping[int, Any]) -> bool:
    """Whether kept values have the form that the program recalls."""
    recalled = {spec.site: spec for spec in decisions.points.values() if isinstance(spec, RecallPoint)}
    return all(site in recalled and _fits(recalled[site], pool) for site, pool in pools.items())


def _fits(spec: RecallPoint, pool: Any) -> bool:
    wanted = [spec.slots if size is None else size for size in spec.shape]
    same = len(wanted) == pool.dim() and str(pool.dtype).removeprefix("torch.") == spec.dtype
    return same and all(want < 0 or want == size for want, size in zip(wanted, pool.shape, strict=True))


def _check_options(programs: Sequence[_Program], saved: Sequence[Mapping[str, Any]]) -> None:
    mine, theirs = [each.options for each in programs], [each["options"] for each in saved]
    if any(each in mine for each in theirs):
        return
    here, there = mine[-1], theirs[-1] if theirs else {}
    names = [name for name in dict.fromkeys((*here, *there)) if here.get(name) != there.get(name)]
    why = "; ".join(f"{name} is {here.get(name)!r} here and {there.get(name)!r} in the state" for name in names)
    fix = "compile with the options that the state was saved under"
    raise InputError("the state was saved under other options", where="options", why=why, fix=fix)


def _check_sizes(programs: Sequence[_Program], saved: Sequence[Mapping[str, Any]]) -> None:
    pairs = itertools.product(programs, saved)
    differences = [mine.difference(state["sizes"]) for mine, state in pairs if mine.options == state["options"]]
    if all(differences):
        fix = f"load it where inputs have these sizes; where they will, {_CALL}"
        raise InputError("the state is of other sizes", where="inputs", why=differences[-1], fix=fix)
