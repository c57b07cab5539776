"""One of two runs of a schedule, eager or compiled: its own module, arguments and results, made from the same seeds."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

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

Compile = Callable[[nn.Module], Callable[..., Any]]


@dataclass
class Side:
    """A module, how it is called, and what its caller holds.

    Attributes:
        compile: makes the function that is called of the module; the identity for eager.
        concurrent: whether calls that are to happen together do; eager's make the numbers one after the other.
        is_ours: whether lightint compiled it, and can be asked about it.
        arguments: of the next call.
        stash: arguments that were put aside.
        held: flat results of the latest calls, the newest last.
        structure: of the newest result.
        other: a second module, and how it is called, once there was one.
    """

    features: WorldFeatures
    compile: Compile
    concurrent: bool = True
    is_ours: bool = False
    sizes: Sizes = field(default_factory=Sizes)
    mode: str = "no_grad"
    threaded: bool = False
    stash: dict[str, Any] = field(default_factory=dict)
    held: list[list[Any]] = field(default_factory=list)
    structure: Any = None
    other: tuple[nn.Module, Callable[..., Any]] | None = None

    def __post_init__(self) -> None:
        self.module: nn.Module = build(self.features)
        self.arguments = arguments_of(self.features, self.sizes, self.features.seed)
        self.call = self.compile(self.module)

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
        found.update({f"argument {name}": each for name, each in self.arguments.items() if isinstance(each, Tensor)})
        found.update({f"stashed {name}": each for name, each in self.stash.items() if isinstance(each, Tensor)})
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
        leaves, self.structure = pytree.tree_flatten(result)
        self.held = [*self.held[1 - _HELD :], leaves]

    def _called(self, arguments: dict[str, Any]) -> Any:
        with MODES[self.mode]():
            return self.call(**arguments)

    def _elsewhere(self, function: Callable[..., Any]) -> Any:
        return _in_threads([lambda: function(self.arguments)])[0]

    def _together(self, calls: list[dict[str, Any]]) -> list[Any]:
        barrier = threading.Barrier(len(calls))

        def work(arguments: dict[str, Any]) -> Any:
            barrier.wait()
            return self._called(arguments)

        return _in_threads([partial(work, each) for each in calls])


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
