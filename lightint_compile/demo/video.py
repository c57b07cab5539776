"""Films as files: mp4 by PyAV, gif by Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightint_compile.demo.canvas import pillow
from lightint_compile.errors import extra_needed

RATE = 6
"""Latent frames a second."""

_GIF_WIDTH = 768
_GIF_COLOURS = 96


def check_video() -> None:
    """Raise InputError where PyAV or Pillow is not installed."""
    pillow()
    _av()


def _av() -> Any:
    with extra_needed("demo", "no video can be written", "lightint demo"):
        import av
    return av


def write_mp4(path: Path, pictures: Sequence[Any]) -> None:
    """H.264 in the format that browsers and slides play; sides of the pictures are even numbers."""
    av = _av()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode(None))


def write_gif(path: Path, pictures: Sequence[Any]) -> None:
    """Smaller and in few colours, for pages that play no video; it begins anew."""
    images, _, _ = pillow()
    width, height = pictures[0].size
    size = (_GIF_WIDTH, height * _GIF_WIDTH // width)
    frames = [picture.resize(size, images.Resampling.LANCZOS).quantize(_GIF_COLOURS) for picture in pictures]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // RATE, loop=0, optimize=True)
