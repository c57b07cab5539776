"""Each distinct block is traced once: Dynamo takes a fifth of a second for every call of one.

A world model calls some fifty blocks of one class in every denoising step. While it is traced, their methods are
regions (``torch.compiler.nested_compile_region``; see ``torch_regions``). Dynamo then gives a call what an earlier one
became, where arguments have the same structure, layouts and constants and every guard that the trace left holds for the
other block. What guards do not say is asked here: weights and arguments are tied in the same way, modes are the same,
nothing that is older than the call was written to. The bodies are put in their places, so that the graph is the one of
a plain trace; where any of this fails, the call is traced plainly.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from lightint_compile.capture.block_descriptions import Descriptions
from lightint_compile.capture.block_inlining import inline
from lightint_compile.capture.dry_run import Reader, trace_once, undisturbed
from lightint_compile.capture.module_stacks import Differs
from lightint_compile.capture.transforms import uses_transforms
from lightint_compile.torch_compat import changes_objects
from lightint_compile.torch_regions import as_regions, is_region_call, reuses_regions

log = logging.getLogger(__name__)

Blocks = Mapping[type[nn.Module], Sequence[nn.Module]]
"""The blocks of each class."""


class BlocksOnce:
    """A trace of a call of ``root`` in which each distinct block is traced once.

    Attributes:
        done: the graph is the one that a plain trace gives.
    """

    def __init__(self, root: nn.Module, blocks: Blocks) -> None:
        self._root, self._blocks = root, blocks
        self.done = False

    @classmethod
    def of(cls, root: object) -> BlocksOnce:
        """The way to trace a call of ``root``.

        Raises:
            Differs: the call has to be traced plainly.
        """
        if not reuses_regions():
            raise Differs(f"torch {torch.__version__} traces every call of a region")
        if not isinstance(root, nn.Module):
            raise Differs("it is not the call of a module as a whole")
        blocks = repeated_blocks(root)
        if not blocks:
            raise Differs("no list in it holds several modules of one class")
        for kind, each in blocks.items():
            if not _are_tied_alike(each):
                raise Differs(f"which weights are one tensor differs between blocks of {kind.__name__}")
        return cls(root, blocks)

    @contextmanager
    def traced(self, *, guarded: bool) -> Iterator[None]:
        """What Dynamo traces inside has calls of blocks in its graph, which :func:`blocks_in_place` looks for.

        Args:
            guarded: as of :func:`as_regions`.
        """
        functions = {getattr(kind, name) for kind in self._blocks for name in _entries(kind)}
        stack = _under_way.__dict__.setdefault("stack", [])
        stack.append(self)
        try:
            blocks = [block for each in self._blocks.values() for block in each]
            with as_regions(functions, _Operands(self._blocks), Descriptions(blocks).of, guarded=guarded):
                yield
        finally:
            stack.remove(self)

    def inline(self, graph_module: fx.GraphModule) -> int:
        """Put the bodies of all calls in their places; how many calls were not traced.

        Raises:
            Differs: the graph may not be the one of a plain trace.
        """
        if uses_transforms(graph_module) or changes_objects():
            raise Differs("what a block computes may depend on what happened before")
        calls = list(filter(is_region_call, graph_module.graph.nodes))
        bodies = {str(call.args[1]) for call in calls}
        inline(graph_module, calls, self._root)
        self.done = True
        return len(calls) - len(bodies)


_under_way = threading.local()


def blocks_in_place(graph_module: fx.GraphModule) -> int:
    """Make a graph that Dynamo hands over the one of a plain trace; how many calls of blocks were not traced.

    Raises:
        Differs: it may not be that.
    """
    stack = getattr(_under_way, "stack", None)
    return stack[-1].inline(graph_module) if stack and not stack[-1].done else 0


def trace_by_blocks(module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], read: Reader) -> bool:
    """:func:`trace_once`, each distinct block traced once; ``False`` where the call is to be traced plainly.

    Raises:
        Exception: whatever ``read`` raised.
    """
    try:
        way = BlocksOnce.of(module)
    except Exception as error:  # whatever a user's module does when it is looked at
        log.debug("every call of a block is traced: %s", error)
        return False

    def read_inlined(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        blocks_in_place(graph_module)
        read(graph_module, inputs)

    try:
        with undisturbed(), way.traced(guarded=False):
            trace_once(module, args, kwargs, read_inlined)
    except Exception as error:
        if way.done:
            raise
        log.debug("every call of a block is traced: %s", error)
    return way.done


def repeated_blocks(root: nn.Module) -> Blocks:
    """The outermost classes of which a list or a sequence in ``root`` holds several modules; torch's own are not it."""
    listed: set[type[nn.Module]] = set()
    for holder in root.modules():
        if isinstance(holder, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            kinds = [type(child) for child in holder.children()]
            listed |= {kind for kind in kinds if kinds.count(kind) > 1 and _is_of_user(kind)}
    blocks = defaultdict(list)
    for module in root.modules():
        if type(module) in listed:
            blocks[type(module)].append(module)
    inside = {type(part) for each in blocks.values() for block in each for part in block.modules() if part is not block}
    return {kind: each for kind, each in blocks.items() if kind not in inside}


def _is_of_user(kind: type[nn.Module]) -> bool:
    marked = any(hasattr(getattr(kind, name), "__marked_compile_region_fn__") for name in _entries(kind))
    return kind.__module__.split(".")[0] != "torch" and not marked


def _entries(kind: type[nn.Module]) -> list[str]:
    """``forward``, and public methods that no other method of the class seems to call."""
    methods = {
        name: value
        for each in kind.__mro__
        if each.__module__.split(".")[0] != "torch"
        for name, value in vars(each).items()
        if isinstance(value, FunctionType)
    }
    called = {name for method in methods.values() for name in method.__code__.co_names}
    return [name for name in methods if name == "forward" or not (name.startswith("_") or name in called)]


def _are_tied_alike(blocks: Sequence[nn.Module]) -> bool:
    """Whether the same tensors of each block are one tensor: no guard tells."""
    patterns = set()
    for block in blocks:
        first: dict[int, int] = {}
        patterns.add(tuple(first.setdefault(id(each), place) for place, each in enumerate(_tensors(block))))
    return len(patterns) == 1


def _tensors(block: nn.Module) -> Iterator[torch.Tensor]:
    for _, module in block.named_modules(remove_duplicate=False):
        values = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        yield from (value for value in values if isinstance(value, torch.Tensor))


class _Operands:
    """Refuses operands of a region that tell its calls apart where Dynamo does not look."""

    def __init__(self, blocks: Blocks) -> None:
        self._owned = {id(each) for group in blocks.values() for block in group for each in _tensors(block)}

    def __call__(self, nodes: Sequence[fx.Node]) -> None:
        if len(set(nodes)) < len(nodes):
            raise Differs("one tensor is given twice to a block")
        for node in nodes:
            argument = node.meta.get("grapharg")
            if not isinstance(node.meta.get("example_value"), torch.Tensor):
                raise Differs("a size is given to a block")
            if argument is not None and id(argument.example) in self._owned:
                raise Differs("a block's own tensor is given to a block")
