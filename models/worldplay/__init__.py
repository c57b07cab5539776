"""HY-WorldPlay: the 8B autoregressive video world model, at any size."""

from ..checkpoint import load_checkpoint
from ..dynamic_frames import mark_frames_dynamic
from ..random_weights import fill_random
from .checkpoint import load_chunk
from .chunk import WorldPlayChunk
from .config import WorldPlayConfig
from .examples import example_inputs, example_scene
from .pose_files import load_trajectory
from .rollout import ChunkResult, Scene, rollout
from .trajectory import Trajectory, parse_pose_string
from .transformer import WorldPlayTransformer

__all__ = [
    "ChunkResult",
    "Scene",
    "Trajectory",
    "WorldPlayChunk",
    "WorldPlayConfig",
    "WorldPlayTransformer",
    "example_inputs",
    "example_scene",
    "fill_random",
    "load_checkpoint",
    "load_chunk",
    "load_trajectory",
    "mark_frames_dynamic",
    "parse_pose_string",
    "rollout",
]
