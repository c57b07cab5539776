"""Regions with exchanges by copies: there Inductor keeps the order in which they start and are waited for.

:func:`~passes.ir.transfers.spread` puts what can run meanwhile between a start and its wait. To start early holds what
comes for longer, and Inductor's search for an order of lower peak memory would put the start in front of the wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.fx as fx

from lightint_compile.passes.ir.transfers import exchanges_in

IN_ORDER: Mapping[str, Any] = {"reorder_for_peak_memory": False}
"""Inductor's settings under which kernels run in the order of the graph, but for those that it fuses."""


def settings_for(region: fx.GraphModule) -> Mapping[str, Any]:
    """Inductor's settings for a region, where it needs any."""
    return IN_ORDER if any(exchanges_in(region.graph)) else {}
