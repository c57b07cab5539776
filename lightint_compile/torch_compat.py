"""Differences between versions of torch.

Like ``errors`` this is a bottom rung of the import ladder: it imports nothing of ours, and every rung may import it.
Differences between versions of Triton are in ``kernels/triton_compat.py``, because importing those needs Triton.

A name belongs here when a supported version of torch lacks it, has it under another name or gives it another meaning.
Private names that are the same in all of them are declared in ``torch_private``.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx
from torch._guards import CompileContext, TracingContext
from torch._inductor.runtime.cache_dir_utils import cache_dir as cache_dir
from torch._subclasses.fake_tensor import FakeTensorMode

if TYPE_CHECKING:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

OLDEST, NEWEST = (2, 11), (2, 14)
"""The first and the last version of torch that the test suite runs on."""


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as ``2.13.0+cpu`` or ``2.15.0a0+git1234``."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


TORCH = release(torch.__version__)
"""(major, minor) of the torch that runs."""


def is_supported(version: tuple[int, int] = TORCH) -> bool:
    """Whether the test suite runs on this version of torch."""
    return OLDEST <= version <= NEWEST


def is_observed() -> bool:
    """Whether a mode, a transform or a tracer must see operators: then they must go through the dispatcher.

    No public function tells; every one of these is a counter or a pointer that costs tens of nanoseconds to read.
    """
    from torch._ops import _len_torch_dispatch_stack_pre_dispatch

    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or _len_torch_dispatch_stack_pre_dispatch()
        or is_transformed()
        or torch._C._get_tracing_state() is not None
    )


def is_transformed() -> bool:
    """Whether a transformation of functions is under way (``vmap``, ...), in which tensors stand for others."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def leave_transforms(depth: int) -> None:
    """Switch transformations of functions off until ``depth`` are left, the innermost first.

    ``pop_dynamic_layer_stack_and_undo_to_depth`` would do it, but that of torch 2.11 takes two off at a time.
    """
    functorch = torch._C._functorch
    leave = {
        functorch.TransformType.Vmap: functorch._vmap_decrement_nesting,
        functorch.TransformType.Grad: functorch._grad_decrement_nesting,
        functorch.TransformType.Jvp: functorch._jvp_decrement_nesting,
        functorch.TransformType.Functionalize: functorch._func_decrement_nesting,
    }
    while functorch.get_dynamic_layer_stack_depth() > depth:
        innermost = functorch.peek_interpreter_stack()
        assert innermost is not None
        leave[innermost.key()]()


def raw_stream(device: int) -> int:
    """The current CUDA stream of a device as a driver handle; ``torch.cuda.current_stream`` makes an object first."""
    return int(torch._C._cuda_getCurrentRawStream(device))


def tf32_is_allowed() -> bool:
    """Whether products of float32 matrices on CUDA may run in TF32, by whichever of the two ways it was said."""
    matmul = torch.backends.cuda.matmul
    try:
        return bool(matmul.allow_tf32)
    except RuntimeError:  # refuses to tell once the newer way is in use
        return bool(matmul.fp32_precision == "tf32")


def triton_launches_are_traced() -> bool:
    """Whether ``wrap_triton`` makes a node of a launch at the moment, which refuses options that it does not know."""
    from torch._library.triton import is_wrap_triton_enabled

    return bool(is_wrap_triton_enabled())


def plans_memory_of_branches() -> bool:
    """Whether AOTInductor can reuse buffers where a program has branches.

    That of torch 2.11 looks a branch's operations up in a table of those outside of it, which is an IndexError.
    """
    return TORCH >= (2, 13)


def solves_sizes_in_integers() -> bool:
    """Whether AOTInductor finds ``n`` out of a size such as ``35*n + 5`` without floating point, as from 2.14.1 on."""
    from torch._inductor.codegen import wrapper

    return hasattr(wrapper, "_rewrite_symbol_solution_for_int_codegen")


def shape_env_of(size: torch.SymInt) -> ShapeEnv:
    """What is known of the sizes that ``size`` was traced with; torch 2.14 types it as optional."""
    env = size.node.shape_env
    assert env is not None
    return env


def layout_guard(tensors: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """A check of whether as many values are tensors of the same types, sizes, strides, dtypes and devices.

    It is the check that Dynamo's compiled code makes of its inputs, 40 ns a tensor. It also fails where one tensor
    occurs twice, and when gradients were switched on or off meanwhile. The tensors are not held; they are strided.
    """
    from torch._C._dynamo.guards import TensorGuards

    sizes, strides = [list(each.shape) for each in tensors], [list(each.stride()) for each in tensors]
    make: Any = TensorGuards  # its stub knows a list for one tensor only
    check: Callable[..., bool] = make(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    return check


@contextmanager
def tracing_with(mode: FakeTensorMode) -> Iterator[None]:
    """Torch's own look for the mode of fake tensors finds this one.

    Dynamo calls a backend with a mode that no tensor of the graph has. In torch 2.11 control flow that is traced takes
    that one, and then refuses its own operands.
    """
    context = TracingContext.try_get()
    if context is None:
        yield
        return
    before, context.fake_mode = context.fake_mode, mode
    try:
        yield
    finally:
        context.fake_mode = before


def source_name(node: fx.Node) -> str:
    """Where Dynamo found the value of a placeholder, as Python code; empty for one that it did not find."""
    named = getattr(getattr(node.meta.get("grapharg"), "source", None), "name", "")
    return str(named() if callable(named) else named)  # a method up to torch 2.12, a property from 2.13 on


def changes_objects() -> bool:
    """Whether the function that Dynamo compiles now writes to objects that are older than the call."""
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew

    effects = InstructionTranslator.current_tx().output.side_effects
    changed = (value.mutation_type for value in effects._get_modified_vars())
    return any(not isinstance(each, (AttributeMutationNew, ValueMutationNew)) for each in changed)


def compiled_frame() -> int | None:
    """The number of the frame that Dynamo compiles now, the same for all variants of its code; ``None`` outside."""
    identity = CompileContext.current_compile_id()
    return None if identity is None else identity.frame_id


def compiled_arguments() -> tuple[str, ...] | None:
    """The arguments of the function that Dynamo compiles now; ``None`` where they are not known by name.

    That is outside of Dynamo, behind a graph break, and where the function takes keywords that it does not name.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        code = InstructionTranslator.current_tx().f_code
    except (AttributeError, IndexError, AssertionError):
        return None
    if code.co_flags & inspect.CO_VARKEYWORDS or code.co_name.startswith("torch_dynamo_resume_in"):
        return None
    return tuple(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def graph_passes(configured: Any, last: Callable[[fx.Graph], None]) -> Any:
    """A setting of Inductor's that runs ``last`` behind what was configured; that of torch 2.11 takes one pass only."""
    from torch._inductor import custom_graph_pass

    if not configured:
        return last
    if hasattr(custom_graph_pass, "get_custom_graph_passes"):
        return [*custom_graph_pass.get_custom_graph_passes(configured), last]

    def one_after_another(graph: fx.Graph) -> None:
        configured(graph)
        last(graph)

    return one_after_another


def keeps_copies_apart() -> bool:
    """Whether Inductor keeps a copy by a kernel of its own in front of what writes to its source, as from 2.14 on."""
    return TORCH >= (2, 14)


class CallSetting:
    """A setting of torch's that holds while calls of ours run, in whichever threads these are.

    From torch 2.14 on what a thread sets holds in that thread alone, so each call sets it for itself. Before, it holds
    for the process: the first call that runs sets it, and the last puts back what was there.

    Args:
        config: the module of settings.
        wanted: makes the value from the one that stands; of its own value the same.
    """

    def __init__(self, config: Any, name: str, wanted: Callable[[Any], Any]) -> None:
        self._config, self._name, self._wanted = config, name, wanted
        self._is_of_a_thread = isinstance(config._config[name].user_override, ContextVar)
        self._patch = functools.lru_cache(maxsize=8)(lambda value: config.patch({name: value}))
        self._lock = threading.Lock()
        self._calls, self._before, self._set = 0, None, None

    def on(self) -> AbstractContextManager[None]:
        """The setting holds while the context lasts."""
        return self._in_this_thread() if self._is_of_a_thread else self._in_all_threads()

    def _in_this_thread(self) -> AbstractContextManager[None]:
        before = getattr(self._config, self._name)
        value = self._wanted(before)
        return nullcontext() if value == before else self._patch(value)  # one patch may be entered again inside itself

    @contextmanager
    def _in_all_threads(self) -> Iterator[None]:
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                self._before = getattr(self._config, self._name)
                self._set = self._wanted(self._before)
                setattr(self._config, self._name, self._set)
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls and getattr(self._config, self._name) == self._set:
                    setattr(self._config, self._name, self._before)
