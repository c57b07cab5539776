"""HY-WorldPlay: the 8B autoregressive video world model, at any size."""

from .chunk import WorldPlayChunk
from .config import WorldPlayConfig
from .examples import example_inputs, fill_random
from .transformer import WorldPlayTransformer

__all__ = ["WorldPlayChunk", "WorldPlayConfig", "WorldPlayTransformer", "example_inputs", "fill_random"]
