"""The sm_90 kernel as an implementation: portable pooling and selection, Gluon attention."""

from __future__ import annotations

from .hopper import attend as attend
from .portable import pool_spans as pool_spans
from .portable import select_blocks as select_blocks
