"""Operators behind the rewrites: schemas, fakes, reference, CPU and GPU implementations, cost model.

The names below load on first use, so that importing the package needs neither Triton nor CUDA.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Choice as Choice
    from .api import block_sparse_attention as block_sparse_attention
    from .api import block_sparse_attention_segments as block_sparse_attention_segments
    from .api import implementation as implementation
    from .api import part_tile as part_tile
    from .api import pool_tiles as pool_tiles
    from .api import prepare_context as prepare_context
    from .api import select_blocks as select_blocks
    from .api import sparse_attention as sparse_attention
    from .api import sparse_attention_masked as sparse_attention_masked
    from .api import sparse_attention_prepared as sparse_attention_prepared
    from .api import sparse_attention_segments as sparse_attention_segments
    from .api import using as using

__all__ = [
    "Choice",
    "block_sparse_attention",
    "block_sparse_attention_segments",
    "implementation",
    "part_tile",
    "pool_tiles",
    "prepare_context",
    "select_blocks",
    "sparse_attention",
    "sparse_attention_masked",
    "sparse_attention_prepared",
    "sparse_attention_segments",
    "using",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.api"), name)
