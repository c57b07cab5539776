"""The portable Triton kernels: pooling, selection, attention. Importing this package imports Triton."""

from .attention import attend as attend
from .dense import attend_all as attend_all
from .pipeline import bind as bind
from .pooling import pool_spans as pool_spans
from .selection import select_blocks as select_blocks
