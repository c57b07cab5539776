"""A region compiled once, with its weights as arguments, and called as often as it occurs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.convert_frame import compile_lock
from torch._inductor import config as inductor_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from lightint_compile.fallback import is_answered, told
from lightint_compile.kernels.exchange import lower_as_collective
from lightint_compile.lowering.cuda_forms import spelled_for_cuda
from lightint_compile.lowering.early_starts import settings_for
from lightint_compile.lowering.fresh_results import FreshResults, stated_memory, stated_orders
from lightint_compile.lowering.region_sizes import BoundSymbol, FreshInputs, fresh_inputs
from lightint_compile.overwritten_reads import settings
from lightint_compile.passes.ir.remarks import Remark

#: Compiles a region for example inputs into a callable on a flat argument list (Inductor's, or the graph itself).
Compiler = Callable[[fx.GraphModule, FreshInputs], "Variant"]

#: Makes a region's graph by name, when a call has sizes that no compiled form of it covers.
RegionSource = Callable[[str], fx.GraphModule]


@dataclass(frozen=True)
class Variant:
    """One compiled form of a region.

    Attributes:
        function: takes the region's arguments, returns a flat tuple.
        guard: the condition on sizes under which it holds, as text over ``L['t0']``, ``L['t1']``, ...; ``None`` for
        always.
        bindings: where the sizes in ``guard`` are read.
        extra: positions in ``bindings`` of the sizes that ``function`` takes as integers before the region's arguments.
        floats: positions of the region's arguments that are Python floats and reach ``function`` as tensors.
        save: writes the compiled form to a file; ``None`` where it cannot be written.
        is_text: whether that file is the region's text, which runs on the host operator by operator.
        results: keeps results from sharing memory that they do not share in the region's graph.
    """

    function: Callable[..., Sequence[Any]]
    guard: str | None = None
    bindings: tuple[BoundSymbol, ...] = ()
    extra: tuple[int, ...] = ()
    floats: tuple[int, ...] = ()
    save: Callable[[str], None] | None = None
    is_text: bool = False
    results: FreshResults = field(default_factory=FreshResults)

    @cached_property
    def _code(self) -> CodeType | None:
        return None if self.guard is None else compile(self.guard, "<guard of a region>", "eval")

    def holds(self, args: Sequence[Any]) -> bool:
        """Whether the sizes of this call satisfy the guard."""
        if self._code is None:
            return True
        sizes = {f"t{index}": bound.read(args) for index, bound in enumerate(self.bindings)}
        return bool(eval(self._code, SYMPY_INTERP, {"L": sizes}))

    def __call__(self, args: Sequence[Any]) -> Sequence[Any]:
        """Run the compiled form on the region's arguments."""
        sizes = (self.bindings[index].read(args) for index in self.extra)
        if self.floats:
            args = [_as_tensor(arg) if index in self.floats else arg for index, arg in enumerate(args)]
        return self.results.of(args, self.function(*sizes, *args))


def _as_tensor(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64, device="cpu")


@dataclass
class Leaf:
    """A region that runs: the variant whose guard holds, or a new one compiled for sizes that none covers.

    Attributes:
        name: the region's name in the driver (``block_0``).
        graph: makes the region in normal form; after a warm start it is captured again.
        strict: a form that cannot be compiled raises; else the region runs operation by operation for its sizes.
        failure: what is said of a form that could not be compiled.
    """

    name: str
    graph: Callable[[], fx.GraphModule]
    compiler: Compiler
    variants: list[Variant] = field(default_factory=list)
    compilations: int = 0
    strict: bool = False
    failure: Remark | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def compile(self, hints: Sequence[Any] | None = None) -> Variant:
        """Compile the region for the sizes it was traced with, or for those of a call."""
        graph = self.graph()
        values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        inputs = fresh_inputs(values, hints)
        return self.take(self.compiler(graph, inputs))

    def take(self, variant: Variant) -> Variant:
        """Run ``variant`` from now on where it holds: the region was compiled for this process."""
        self.variants.append(variant)
        self.compilations += 1
        return variant

    def __call__(self, *args: Any) -> Sequence[Any]:
        """Run the region."""
        variant = self._fitting(args)
        if variant is None:
            with compile_lock, self._lock:  # another thread may have compiled it meanwhile
                variant = self._fitting(args) or self._compiled(args)
        return variant(args)

    def _fitting(self, args: Sequence[Any]) -> Variant | None:
        return next((variant for variant in self.variants if variant.holds(args)), None)

    def _compiled(self, args: Sequence[Any]) -> Variant:
        try:
            return self.compile(args)
        except Exception as error:
            if self.strict or not is_answered(error):
                raise
            function = without_autocast(one_by_one(self.graph()))
            variant = Variant(function)  # holds for whatever sizes no other form covers: none is tried again
            self.variants.append(variant)
            instead = "it runs operation by operation for sizes that no compiled form covers, which is slower"
            self.failure = told(f"compiling {self.name} for another size", instead, error)
            return variant


def standalone(graph_module: fx.GraphModule, inputs: FreshInputs) -> fx.GraphModule:
    """A copy of a region whose placeholders carry ``inputs``; its other values are left for the compiler to find."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    values = iter(enumerate(inputs.values))
    for index in inputs.extra:
        size = graph.placeholder(f"size_{index}")
        size.meta["val"] = size.meta["example_value"] = inputs.symbols[index]
    floats = set(inputs.floats)
    read: list[tuple[fx.Node, fx.Node]] = []
    for node in graph_module.graph.nodes:
        if node.op != "placeholder":
            mapping.update((old, graph.call_function(_READ, (tensor,))) for old, tensor in read)
            read.clear()
        copied = mapping[node] = graph.node_copy(node, lambda old: mapping[old])
        copied.meta = {key: value for key, value in copy.copy(node.meta).items() if key in _KEPT}
        if node.op == "placeholder":
            index, value = next(values)
            copied.meta["val"] = copied.meta["example_value"] = value
            if index in floats:
                read.append((node, copied))
    anchor(graph, inputs.mode)
    return fx.GraphModule(graph_module, graph)


def anchor(graph: fx.Graph, mode: FakeTensorMode) -> None:
    """Show ``mode`` on the outputs, where standalone_compile looks for it; any value of that mode will do."""
    with mode:  # a region of tables has no tensor among its inputs
        value = torch.empty(())
    for node in graph.output_node().all_input_nodes:
        node.meta.setdefault("example_value", value)


def with_fixed_integers(alone: fx.GraphModule) -> fx.GraphModule:
    """Integers that the guard fixes are constants of the region: ``6*n + 24`` is 30 where ``n`` is 1.

    Inductor takes an integer among the inputs for one that changes, and makes a symbol of its own for it. Conditions on
    that symbol cannot be written down, or are lost, and the code then runs for sizes that it was not made for. It makes
    none for 0, which is therefore what it sees of an integer that nothing reads any more.
    """
    for node in alone.graph.find_nodes(op="placeholder"):
        if isinstance(node.meta["val"], int):  # a SymInt is none
            _read_as(node, node.meta["val"])
            if not node.users:
                node.meta["val"] = node.meta["example_value"] = 0
    alone.recompile()
    return alone


def _read_as(node: fx.Node, number: int) -> None:
    """All that read ``node`` read ``number``, but for the output, which is made of nodes."""
    for user in [user for user in node.users if user.op != "output"]:
        arguments = user.args, user.kwargs
        user.args, user.kwargs = fx.map_arg(arguments, lambda read: number if read is node else read)


_READ = torch.ops.aten._local_scalar_dense.default

_KEPT = ("stack_trace", "nn_module_stack", "source_fn_stack", "custom")


def one_by_one(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy for operators as they are: one may lay its result out in another way than its fake form says.

    A view of it is then no view. Compiled code lays results out as the fake forms say.
    """
    graph = copy.deepcopy(graph_module.graph)
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default
    return fx.GraphModule(graph_module, graph)


def eager_compiler(graph_module: fx.GraphModule, inputs: FreshInputs) -> Variant:
    """``delegate="eager"``: the rewritten region as it is, for debugging and for machines without a compiler."""
    function = without_autocast(one_by_one(standalone(graph_module, inputs)))
    return Variant(function, bindings=inputs.bindings, extra=inputs.extra, floats=inputs.floats)


def inductor_compiler(config_patches: dict[str, Any]) -> Compiler:
    """Inductor on one region, outside Dynamo's tracing context, under ``config_patches``."""

    def compile_region(graph_module: fx.GraphModule, inputs: FreshInputs) -> Variant:
        artifact = compiled_alone(*for_inductor(graph_module, inputs, config_patches))
        save = _saver(artifact) if getattr(artifact, "is_saveable", lambda: True)() else None
        results = FreshResults(stated_memory(graph_module.graph), stated_orders(graph_module.graph))
        function = below_autograd(artifact)
        return Variant(function, inputs.guard(), inputs.guarded(), inputs.extra, inputs.floats, save, results=results)

    return compile_region


def for_inductor(
    graph_module: fx.GraphModule, inputs: FreshInputs, config_patches: Mapping[str, Any]
) -> tuple[fx.GraphModule, dict[str, Any]]:
    """What :func:`compiled_alone` takes for a region: its graph, and settings of Inductor."""
    spelled = spelled_for_cuda(graph_module)
    alone = with_fixed_integers(standalone(spelled.graph_module, inputs))
    return alone, {**settings_for(graph_module), **spelled.config, **config_patches}


def compiled_alone(alone: fx.GraphModule, config: Mapping[str, Any]) -> Any:
    """Inductor's artifact of a graph whose placeholders carry their fake values."""
    lower_as_collective()
    examples = [node.meta["val"] for node in alone.graph.find_nodes(op="placeholder")]
    with torch.no_grad(), inductor_config.patch({**settings(), **config}), autocast_off():
        return torch._inductor.standalone_compile(alone, examples, dynamic_shapes="from_graph", options={})


def below_autograd(compiled: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """Compiled code, which records no gradients, past the kernels of our operators that refuse them in Python.

    Not for operators one by one: there a clone counts the copy that fills it as a write to it.
    """

    def called(*args: Any) -> Sequence[Any]:
        with torch._C._AutoDispatchBelowAutograd():
            return compiled(*args)

    return called


def _saver(artifact: Any) -> Callable[[str], None]:
    return lambda path: artifact.save(path=path, format="binary")


class autocast_off:  # noqa: N801 - reads as the state it sets
    """Casts are in the graph already (see explicit_autocast.py): none may be added when a region is traced or run."""

    def __enter__(self) -> None:
        self._saved = [(device, torch.is_autocast_enabled(device)) for device in ("cpu", "cuda")]
        for device, _ in self._saved:
            torch.set_autocast_enabled(device, False)

    def __exit__(self, *_: object) -> None:
        for device, enabled in self._saved:
            torch.set_autocast_enabled(device, enabled)


def without_autocast(function: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """``function``, which calls operators that autocast would cast for a second time."""

    def called(*args: Any) -> Sequence[Any]:
        with autocast_off():
            return function(*args)

    return called
