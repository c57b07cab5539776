"""Matrix-Game-3.0: the 5B world model with mouse and keyboard, at any size."""

from ..checkpoint import load_checkpoint
from ..dynamic_frames import mark_frames_dynamic
from ..random_weights import fill_random
from ..world_model import ChunkResult
from .checkpoint import load_clip, to_int8
from .clip import MatrixGameClip
from .config import MatrixGameConfig
from .examples import example_inputs, example_scene
from .rollout import Scene, rollout
from .trajectory import Trajectory, load_trajectory
from .transformer import MatrixGameTransformer

__all__ = [
    "ChunkResult",
    "MatrixGameClip",
    "MatrixGameConfig",
    "MatrixGameTransformer",
    "Scene",
    "Trajectory",
    "example_inputs",
    "example_scene",
    "fill_random",
    "load_checkpoint",
    "load_clip",
    "load_trajectory",
    "mark_frames_dynamic",
    "rollout",
    "to_int8",
]
