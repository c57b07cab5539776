"""Rules of other accelerators, written again from what they publish, on the uncompiled model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .easy_cache import EasyCache
from .first_block_cache import FirstBlockCache
from .flow_cache import FlowCache
from .taylor_seer import TaylorSeer
from .teacache import TeaCache
from .world_kv import WorldKV

PEERS: Mapping[str, Any] = {
    "teacache": TeaCache,
    "first-block-cache": FirstBlockCache,
    "taylorseer": TaylorSeer,
    "easycache": EasyCache,
    "flowcache": FlowCache,
    "worldkv": WorldKV,
}
"""Rules by the name of their variant."""
