"""Dynamo's way from a call to compiled code, opened at two places: around a trace, and where its guards are made.

What kept traces and traces by blocks need there of Dynamo's private names is here. They are those of torch 2.14, and
checked when the package is imported: under any other version :func:`opens_frames` is false, nothing is changed, and
every process traces every call.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import itertools
import marshal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import CodeType
from typing import Any, Protocol

import torch

from lightint_compile.torch_compat import TORCH
from lightint_compile.torch_guards import kind_of
from lightint_compile.torch_switches import state
from lightint_compile.trace_parts import Conditions, Frame, PlainGuard, Traced, UnkeepableError, names_in

BUILTINS = "__lightint_builtins__"
"""The name under which a kept trace finds Python's builtins among the globals of a function."""

COMPILED = "__compiled_fn"
"""How names begin under which Dynamo's code finds what a backend made."""

_RESUMED = ("__resume_at", "torch_dynamo_resume_in")


Look = Callable[[Sequence[PlainGuard], Callable[[Any], Any]], None]
"""Is shown the guards that are made, and what gives the value of a source."""


class Way(Protocol):
    """A way to trace a call that may fail where Dynamo's own would not."""

    def around(self) -> AbstractContextManager[None]:
        """What to trace inside of."""
        ...

    def is_final(self, error: Exception) -> bool:
        """Whether Dynamo's own way would end in this error too; otherwise the call is traced plainly."""
        ...


class Keeper(Protocol):
    """Who keeps traces."""

    def wants(self, frame: Frame) -> bool:
        """Whether traces of this call are kept."""
        ...

    def find(self, frame: Frame) -> Any:
        """What :func:`installed` made of a kept trace that fits; ``None`` where none does."""
        ...

    def look(self, guards: Sequence[PlainGuard], value_of: Callable[[Any], Any]) -> None:
        """The guards of the trace that is being made; see :data:`Look`."""
        ...

    def made(self, frame: Frame, traced: Callable[[], Traced]) -> None:
        """A trace was made; ``traced`` tells of it, or raises :class:`UnkeepableError`."""
        ...


def opens_frames() -> bool:
    """Whether this torch is one whose way from a call to compiled code is known."""
    if TORCH != (2, 14):
        return False
    frames, guards = (importlib.import_module(f"torch._dynamo.{name}") for name in ("convert_frame", "guards"))
    given = inspect.signature(frames._compile).parameters
    return {"code", "globals", "locals", "builtins", "closure", "compiler_fn", "one_graph", "hooks"} <= set(given) and {
        "build_guards",
        "UNSUPPORTED_SERIALIZATION_GUARD_TYPES",
    } <= set(vars(guards.CheckFunctionManager))


def trace_by(way_of: Callable[[Frame], Way | None]) -> None:
    """Trace calls by the way that ``way_of`` names for them, for the rest of the process."""

    def traced(frame: Frame, own: Callable[[], Any]) -> Any:
        way = way_of(frame)
        if way is not None:
            try:
                with way.around():
                    return own()
            except Exception as error:
                if way.is_final(error):
                    raise
        return own()

    _open_frames(traced)


def keep_with(keeper: Keeper) -> None:
    """Let ``keeper`` be asked in front of every trace that it wants, for the rest of the process."""

    def traced(frame: Frame, own: Callable[[], Any]) -> Any:
        if not keeper.wants(frame):
            return own()
        found = keeper.find(frame)
        if found is not None:
            return found
        with _watched(keeper.look) as made:
            result = own()
        if result.guarded_code is not None:
            keeper.made(frame, lambda: _traced(frame, result.guarded_code.code, made))
        return result

    _open_frames(traced)


def _open_frames(traced: Callable[[Frame, Callable[[], Any]], Any]) -> None:
    """Let ``traced`` make every trace that nobody else has a say in; it is given what makes it so far."""
    if not opens_frames():
        return
    frames: Any = importlib.import_module("torch._dynamo.convert_frame")
    own = frames._compile
    signature = inspect.signature(own)

    @functools.wraps(own)
    def compile_frame(*args: Any, **named: Any) -> Any:
        given = signature.bind(*args, **named).arguments
        frame = _frame_of(given)
        if "skip" in named:
            named["skip"] += 1 if frame is None else 3  # functions of this file that are on the stack as well
        return own(*args, **named) if frame is None else traced(frame, lambda: own(*args, **named))

    frames._compile = compile_frame


def _frame_of(given: Mapping[str, Any]) -> Frame | None:
    """The call, unless somebody else has a say in it."""
    hooks = given["hooks"]
    asked = (hooks.guard_export_fn, hooks.guard_fail_fn, hooks.guard_filter_fn)
    if given["export"] or given.get("package") is not None or any(each is not None for each in asked):
        return None
    backend = given["compiler_fn"]
    while hasattr(backend, "_torchdynamo_orig_backend"):
        backend = backend._torchdynamo_orig_backend
    names = ("code", "globals", "locals", "builtins", "closure")
    return Frame(
        **{name: given[name] for name in names},
        backend=backend,
        cache_entries=given["cache_entries"],
    )


_watching = threading.local()


def is_watching() -> bool:
    """Whether a trace that may be kept is being made in this thread."""
    return bool(getattr(_watching, "stack", None))


@contextmanager
def _watched(look: Look) -> Iterator[list[Any]]:
    """Guards that are made inside are shown to ``look``; what was made is in the list."""
    guards: Any = importlib.import_module("torch._dynamo.guards")
    manager = guards.CheckFunctionManager
    made: list[Any] = []
    if getattr(manager.build_guards, "_lightint", None) is None:
        own = manager.build_guards

        @functools.wraps(own)
        def build_guards(self: Any, ordered: Any, known: Any, code: Any, graph: Any, save: bool, **named: Any) -> Any:
            asked = getattr(_watching, "stack", None)
            if not asked:
                return own(self, ordered, known, code, graph, save, **named)
            builder, checks = own(self, ordered, known, code, graph, True, **named)
            seen, shown = asked[-1]
            plain = tuple(map(_plain, ordered))
            seen.append((self, graph, plain))
            shown(plain, builder.get)
            return builder, checks

        build_guards._lightint = True  # type: ignore[attr-defined]
        manager.build_guards = build_guards
    stack = _watching.__dict__.setdefault("stack", [])
    stack.append((made, look))
    try:
        yield made
    finally:
        stack.pop()


def _traced(frame: Frame, code: CodeType, made: Sequence[Any]) -> Traced:
    """What is to be kept of a trace."""
    if len(made) != 1:
        raise UnkeepableError("its guards were not made once")
    ((manager, graph, guards),) = made
    names = set(names_in(code))
    programs = [name for name in names if name.startswith(COMPILED)]
    if any(name.startswith(_RESUMED) for name in names) or len(programs) != 1:
        raise UnkeepableError("the call is not one graph")
    foreign = names & set(graph.installed_globals) - {*programs, *graph.import_sources}
    if foreign:
        raise UnkeepableError(f"its code uses {min(foreign)}, which lives in this process")
    if graph.aotautograd_guards or graph.functorch_layers or graph.torch_function_mode_stack or graph.export:
        raise UnkeepableError("it was traced under a mode or a transformation")
    try:
        bytecode = marshal.dumps(code)
    except ValueError as error:
        raise UnkeepableError(f"its code holds an object: {error}") from None
    (program,) = programs
    conditions = Conditions(
        guards,
        tuple((source, _concrete(layout)) for source, layout in graph.input_source_to_sizes_strides.items()),
        tuple(graph.guard_on_key_order),
        manager.shape_code_parts,
        state(),
    )
    return Traced(bytecode, program, dict(graph.import_sources), conditions, tuple(dict.fromkeys(graph.traced_code)))


def _plain(guard: Any) -> PlainGuard:
    """A guard without what lives in this process."""
    make = guard.create_fn
    named = dict(make.keywords) if isinstance(make, functools.partial) else {}
    given = make.args if isinstance(make, functools.partial) else ()
    kind = kind_of(guard)
    if kind == "TENSOR_MATCH":
        named.pop("value", None)
    return kind, guard.originating_source, tuple(given), tuple(named.items())


def _concrete(layout: Mapping[str, Any]) -> dict[str, Any]:
    concrete = importlib.import_module("torch._dynamo.guards").convert_to_concrete_values
    return {name: tuple(concrete(layout[name])) for name in ("size", "stride")}


def first_of(source: Any) -> Any:
    """What a source of Dynamo's begins with."""
    return source.get_base() if hasattr(source, "get_base") else source


def source_of_global(name: str) -> tuple[type[Any], tuple[str]]:
    """How a source is made that is a global name."""
    return importlib.import_module("torch._dynamo.source").GlobalSource, (name,)


def is_global_source(value: Any, prefix: str) -> bool:
    """Whether ``value`` is Dynamo's source of a global name that begins with ``prefix``."""
    kind = importlib.import_module("torch._dynamo.source").GlobalSource
    return type(value) is kind and value.global_name.startswith(prefix)


def is_argument(source: Any) -> bool:
    """Whether a source of Dynamo's is an argument itself."""
    return type(source) is importlib.import_module("torch._dynamo.source").LocalSource


def values_in(frame: Frame) -> Callable[[Any], Any]:
    """What sources of Dynamo's are in a call; each is looked up once."""
    guards: Any = importlib.import_module("torch._dynamo.guards")
    scope = {"L": frame.locals, "G": frame.globals, "__builtins__": dict(vars(builtins))}
    names = dict(guards._get_closure_vars())
    known: dict[Any, Any] = {}
    return lambda source: source.get_value(scope, names, known)


def has_layout(value: Any, layout: Mapping[str, Any]) -> bool:
    """Whether a value is a tensor of the sizes of a layout."""
    sizes = layout["size"]
    return (
        isinstance(value, torch.Tensor)
        and len(sizes) == value.dim()
        and all(wanted in (None, size) for wanted, size in zip(sizes, value.shape, strict=True))
    )


def checks_of(frame: Frame, conditions: Conditions) -> Any:
    """The checks that Dynamo makes in front of its code, made anew; they hold for the call at hand.

    Raises:
        UnkeepableError: they do not hold.
        Exception: whatever the call lacks.
    """
    guards: Any = importlib.import_module("torch._dynamo.guards")
    outputs: Any = importlib.import_module("torch._dynamo.output_graph")
    frames: Any = importlib.import_module("torch._dynamo.convert_frame")
    records: Any = importlib.import_module("torch._guards")
    sets: Any = importlib.import_module("torch.utils._ordered_set")
    state = outputs.OutputGraphGuardsState(
        local_scope=frame.locals,
        global_scope=frame.globals,
        torch_function_mode_stack=[],
        guard_on_key_order=set(conditions.ordered),
        input_source_to_sizes_strides=dict(conditions.layouts),
        dual_level=0,
        functorch_layers=[],
        current_device=importlib.import_module("torch.utils._device").CURRENT_DEVICE,
        global_state_guard=frames.initial_global_state,
        _guards=records.GuardsSet(sets.OrderedSet(_guard(each) for each in conditions.guards)),
        _aotautograd_guards=[],
        skip_guards_check=True,
    )
    common = outputs.OutputGraphCommon(state)
    made = guards.CheckFunctionManager(frame.code, common, frame.cache_entries, shape_code_parts=conditions.sizes)
    if not made.guard_manager.check(frame.locals):
        raise UnkeepableError("its guards do not hold for this call")
    return made.guard_manager


def _guard(plain: PlainGuard) -> Any:
    kind, source, given, named = plain
    make = getattr(importlib.import_module("torch._dynamo.guards").GuardBuilder, kind)
    if given or named:
        make = functools.partial(make, *given, **dict(named))
    return importlib.import_module("torch._guards").Guard(source, make)


_number = itertools.count()


def code_with(frame: Frame, traced: Traced) -> tuple[CodeType, str]:
    """The code of a kept trace, and the name under which it looks for the compiled graph: one that nobody has.

    Raises:
        UnkeepableError: a name that it needs is something else here.
    """
    needed: dict[str, Any] = {alias: importlib.import_module(name) for alias, name in traced.imports.items()}
    own: Any = frame.globals["__builtins__"]
    needed[BUILTINS] = own if isinstance(own, dict) else vars(own)
    for name, value in needed.items():
        if frame.globals.setdefault(name, value) is not value:
            raise UnkeepableError(f"{name} is something else here")
    name = f"{traced.program}_kept_{next(_number)}"
    return _renamed(marshal.loads(traced.bytecode), traced.program, name), name


def _renamed(code: CodeType, old: str, new: str) -> CodeType:
    constants = tuple(_renamed(each, old, new) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.replace(co_names=tuple(new if each == old else each for each in code.co_names), co_consts=constants)


def installed(frame: Frame, code: CodeType, name: str, graph: Callable[..., Any], checks: Any) -> Any:
    """What Dynamo is given in place of a trace: ``code``, which calls ``graph`` by ``name`` where ``checks`` hold."""
    frames: Any = importlib.import_module("torch._dynamo.convert_frame")
    kinds: Any = importlib.import_module("torch._dynamo.types")
    utils: Any = importlib.import_module("torch._dynamo.utils")
    callee: Any = torch.compiler.disable(graph, reason="do not trace Dynamo-compiled graph")
    utils.CleanupManager.instance[code] = [utils.CleanupHook.create(frame.globals, name, callee)]
    utils.orig_code_map[code] = frame.code
    frames.output_codes.add(code)
    identity = importlib.import_module("torch._guards").CompileContext.current_compile_id()
    return kinds.wrap_guarded_code(kinds.GuardedCode(code, checks, identity, f"Torch-Compiled Region: {identity}"))


def graph_again(frame: Frame, locals_: dict[str, Any], backend: Callable[..., Any]) -> None:
    """Trace a call once more, for ``backend``; what was compiled stays as it is."""
    frames: Any = importlib.import_module("torch._dynamo.convert_frame")
    records: Any = importlib.import_module("torch._guards")
    metrics = importlib.import_module("torch._dynamo.utils").get_metrics_context
    identity = frames.get_compile_id({})
    with frames.compile_lock, records.compile_context(records.CompileContext(identity)), metrics():
        frames.compile_frame(
            frame.code,
            frame.globals,
            locals_,
            frame.builtins,
            frame.closure,
            compiler_fn=backend,
            one_graph=True,
            restart_reasons=set(),
        )
