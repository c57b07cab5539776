"""One of two runs of a schedule, eager or compiled: its own module, arguments and results, made from the same seeds."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightint_compile.testing.world_features import WorldFeatures
from lightint_compile.testing.world_inputs import Sizes, arguments_of
from lightint_compile.testing.worlds import build

_HELD = 4
"""Results of earlier calls that the caller still holds."""


@contextlib.contextmanager
def _autocast() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "autocast": _autocast,
}


def _in_places(call: Callable[..., Any], arguments: dict[str, Any], signature: inspect.Signature) -> Any:
    bound = signature.bind(None, **arguments)
    bound.apply_defaults()
    return call(*bound.args[1:])


def _mapped(call: Callable[..., Any], arguments: dict[str, Any], signature: inspect.Signature) -> Any:
    name = next(iter(arguments))
    return torch.func.vmap(lambda one: call(**{**arguments, name: one}))(arguments[name][None])


def _checkpointed(call: Callable[..., Any], arguments: dict[str, Any], signature: inspect.Signature) -> Any:
    return checkpoint(call, use_reentrant=False, **arguments)


#: How the caller hands over the arguments.
CALLERS: dict[str, Callable[[Callable[..., Any], dict[str, Any], inspect.Signature], Any]] = {
    "keywords": lambda call, arguments, signature: call(**arguments),
    "positions": _in_places,
    "vmap": _mapped,
    "checkpoint": _checkpointed,
}

Compile = Callable[[nn.Module], Callable[..., Any]]


@dataclass
class Side:
    """A module, how it is called, and what its caller holds.

    Attributes:
        compile: makes the function that is called of the module; the identity for eager.
        concurrent: whether calls that are to happen together do; eager's make the numbers one after the other.
        is_ours: whether lightint compiled it, and can be asked about it.
        caller: one of :data:`CALLERS`.
        arguments: of the next call.
        stash: arguments that were put aside.
        held: flat results of the latest calls, the newest last.
        structure: of the newest result, with all in it that is no tensor.
        other: a second module, and how it is called, once there was one.
    """

    features: WorldFeatures
    compile: Compile
    concurrent: bool = True
    is_ours: bool = False
    caller: str = "keywords"
    sizes: Sizes = field(default_factory=Sizes)
    mode: str = "no_grad"
    threaded: bool = False
    stash: dict[str, Any] = field(default_factory=dict)
    held: list[list[Any]] = field(default_factory=list)
    structure: Any = None
    other: tuple[nn.Module, Callable[..., Any]] | None = None
    calls: int = 0

    def __post_init__(self) -> None:
        self.module: nn.Module = build(self.features)
        self.arguments = arguments_of(self.features, self.sizes, self.features.seed)
        self.call = self.compile(self.module)
        if not self.features.is_stateless and self.caller == "vmap":  # what is kept may not see its tensors
            self.caller = "keywords"

    def run(self) -> None:
        """Call the module; an error surfaces."""
        self._keep(self._elsewhere(self._called) if self.threaded else self._called(self.arguments))

    def run_together(self, seed: int) -> None:
        """Two calls at the same time, the second with other arguments; one after the other on the eager side."""
        both = [self.arguments, arguments_of(self.features, self.sizes, seed)]
        for result in self._together(both) if self.concurrent else [self._called(each) for each in both]:
            self._keep(result)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a caller can look at, by name."""
        found: dict[str, Tensor] = {}
        found.update(self.module.named_parameters())
        found.update(self.module.named_buffers())
        found.update({f"{name}.grad": p.grad for name, p in self.module.named_parameters() if p.grad is not None})
        for what, given in (("argument", self.arguments), ("stashed", self.stash)):
            for name, each in given.items():
                leaves = [leaf for leaf in pytree.tree_leaves(each) if isinstance(leaf, Tensor)]
                found.update({f"{what} {name} {place}": leaf for place, leaf in enumerate(leaves)})
                grads = ((place, leaf.grad) for place, leaf in enumerate(leaves) if leaf.is_leaf)
                found.update({f"{what} {name} {place}.grad": grad for place, grad in grads if grad is not None})
        for age, leaves in enumerate(reversed(self.held)):
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    found[f"result {place}, {age} calls ago"] = leaf
        return found

    def compiled_again(self) -> None:
        """Another compiled object of the same module."""
        self.call = self.compile(self.module)

    def twin(self) -> None:
        """Go on with another module of the same class and other weights, which compiled code may serve as well."""
        if self.other is None:
            module = build(dataclasses.replace(self.features, seed=self.features.seed + 1))
            self.other = module, self.compile(module)
        (self.module, self.call), self.other = self.other, (self.module, self.call)

    def copied(self) -> None:
        """Go on with a deep copy of the module and of what is called."""
        if self.call is self.module:
            self.module = self.call = copy.deepcopy(self.module)
            return
        # Together, so that what is called goes on belonging to the module; a bound method's owner is not found by it.
        self.module, called = copy.deepcopy((self.module, self.call))
        self.call = called if isinstance(called, nn.Module) else self.compile(self.module)

    def _keep(self, result: Any) -> None:
        leaves, spec = pytree.tree_flatten(_opened(result))
        plain = [f"{type(leaf).__name__} {leaf!r}" for leaf in leaves if not isinstance(leaf, Tensor)]
        self.structure = spec, plain
        self.held = [*self.held[1 - _HELD :], leaves]

    def _called(self, arguments: dict[str, Any]) -> Any:
        self.calls += 1
        if self.features.is_random:
            torch.manual_seed(self.calls)
        with MODES[self.mode]():
            return CALLERS[self.caller](self.call, arguments, inspect.signature(type(self.module).forward))

    def _elsewhere(self, function: Callable[..., Any]) -> Any:
        return _in_threads([lambda: function(self.arguments)])[0]

    def _together(self, calls: list[dict[str, Any]]) -> list[Any]:
        barrier = threading.Barrier(len(calls))

        def work(arguments: dict[str, Any]) -> Any:
            barrier.wait()
            return self._called(arguments)

        return _in_threads([partial(work, each) for each in calls])


def _opened(result: Any) -> Any:
    """A dataclass among results as what is in it."""
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        return tuple(map(_opened, result))
    if dataclasses.is_dataclass(result):
        return type(result).__name__, {name: getattr(result, name) for name in result.__dataclass_fields__}
    return result


def _in_threads(functions: list[Callable[[], Any]]) -> list[Any]:
    """The results of functions that run at the same time; the first error surfaces."""
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def work(place: int) -> None:
        try:
            results[place] = functions[place]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
