"""Matrix-Game-2.0: the causal world model with mouse and keyboard that keeps its keys and values, at any size."""

from ..random_weights import fill_random
from ..world_model import ChunkResult
from .caches import Caches, Kept, empty_caches
from .checkpoint import load_chunk
from .chunk import MatrixGame2Chunk
from .config import MatrixGame2Config
from .examples import example_inputs
from .rollout import Actions, Scene, example_scene, recent, rollout
from .transformer import MatrixGame2Transformer

__all__ = [
    "Actions",
    "Caches",
    "ChunkResult",
    "Kept",
    "MatrixGame2Chunk",
    "MatrixGame2Config",
    "MatrixGame2Transformer",
    "Scene",
    "empty_caches",
    "example_inputs",
    "example_scene",
    "fill_random",
    "load_chunk",
    "recent",
    "rollout",
]
