"""``torch.func`` transforms inside a compiled function, traced away before capture.

Dynamo writes ``vmap``, ``grad`` or ``jvp`` down as switches around plain operations. They act below the level at which
a capture keeps attention whole, so what is between them is first run, switches and all, under a trace of what reaches
ATen: the stretches under ``vmap`` alone, or the whole graph where other transforms are in it. The result has no
transforms, and is captured like any other graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.fx as fx
from torch._C import _functorch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.traceback import preserve_node_meta

from lightint_compile.capture.alone import traced_alone
from lightint_compile.capture.explicit_autocast import uses_autocast
from lightint_compile.capture.vmapped import is_switch, stretches_of, without_stretches
from lightint_compile.errors import CaptureError
from lightint_compile.torch_compat import leave_transforms


def uses_transforms(graph_module: fx.GraphModule) -> bool:
    """Whether a graph switches a ``torch.func`` transform on."""
    return any(is_switch(node) for node in graph_module.graph.nodes)


def without_transforms(graph_module: fx.GraphModule, values: Sequence[Any], mode: FakeTensorMode) -> fx.GraphModule:
    """The same function of the same inputs, its transforms carried out in the caller's grad mode, on which they hang.

    Raises:
        CaptureError: the graph switches autocast as well: casts are below transforms, and would be made twice.
    """
    if uses_autocast(graph_module):
        raise CaptureError("torch.func transforms under autocast are not rewritten", where="the graph")
    if stretches := stretches_of(graph_module.graph):
        return without_stretches(graph_module, stretches, mode)
    with preserve_node_meta(), mode:
        return traced_alone(fx.Interpreter(graph_module).run, values)


@contextmanager
def levels_restored() -> Iterator[None]:
    """What is run inside leaves no transform switched on, even where it raises between two switches."""
    depth = _functorch.get_dynamic_layer_stack_depth()
    try:
        yield
    finally:
        leave_transforms(depth)
