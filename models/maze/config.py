"""The sizes of the trained model: HY-WorldPlay's configuration, the codec's, and pixels of a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..worldplay.config import WorldPlayConfig
from .codec import STRIDE, CodecConfig


@dataclass(frozen=True)
class MazeSize:
    """A size by name: `pixels` along a side of a frame, the transformer and the codec."""

    name: str
    pixels: int
    transformer: WorldPlayConfig
    codec: CodecConfig

    @classmethod
    def base(cls) -> MazeSize:
        """Frames of 128 x 128 and 256 tokens each; runs on two CPU cores."""
        return cls("base", 128, _transformer(128), CodecConfig())

    @classmethod
    def large(cls) -> MazeSize:
        """Frames of 192 x 192 and 576 tokens each."""
        return cls("large", 192, _transformer(192), CodecConfig())

    @classmethod
    def tiny(cls) -> MazeSize:
        """Frames of 32 x 32 and 16 tokens each: every phase of the training in a minute on a CPU."""
        small = _transformer(32, hidden_size=64, heads=1, depth=2, fov_points=256)
        return cls("tiny", 32, small, CodecConfig(widths=(16, 24, 32)))


def _transformer(pixels: int, **changes: Any) -> WorldPlayConfig:
    """Of a prompt nothing is left but one token, which never changes; memory holds the first chunk, two new ones, one
    retrieved."""
    sizes: dict[str, Any] = {
        "in_channels": CodecConfig.latent,
        "out_channels": CodecConfig.latent,
        "hidden_size": 256,
        "heads": 4,
        "depth": 6,
        "rope_dims": (16, 24, 24),
        "text_dim": 16,
        "glyph_dim": 16,
        "glyph_hidden": 16,
        "vision_dim": 16,
        "vision_tokens": 1,
        "refiner_depth": 1,
        "latent_height": pixels // STRIDE,
        "latent_width": pixels // STRIDE,
        "memory": 16,
        "recent": 8,
        "sink": 4,
        "fov_points": 1024,
    }
    return WorldPlayConfig(**{**sizes, **changes})


SIZES = {"tiny": MazeSize.tiny, "base": MazeSize.base, "large": MazeSize.large}
"""Sizes by name."""
