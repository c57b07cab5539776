"""Traces beside no other trace and no compilation: FX changes ``nn.Module`` for the whole process while it traces.

Two traces that interleave put each other's change back, and one of them stays for good. Dynamo compiles under a lock of
its own; whatever traces outside of a compilation takes the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.fx as fx
from torch._dynamo import convert_frame
from torch.fx.experimental.proxy_tensor import make_fx


def traced_alone(function: Callable[..., Any], values: Sequence[Any], *, pre_dispatch: bool = False) -> fx.GraphModule:
    """The graph of ``function`` on fake ``values``, while no other thread compiles."""
    with convert_frame.compile_lock:
        return make_fx(function, pre_dispatch=pre_dispatch, _allow_non_fake_inputs=True)(*values)
