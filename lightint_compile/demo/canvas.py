"""Drawing with Pillow: colours, text, and pictures of tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from lightint_compile.errors import extra_needed
from lightint_compile.models.pixels import as_bytes

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

BACKGROUND: Colour = (16, 18, 24)
INK: Colour = (236, 238, 242)
FAINT: Colour = (128, 134, 146)
DIM: Colour = (52, 57, 68)
ORIGINAL: Colour = (120, 170, 255)
OURS: Colour = (255, 176, 66)


def pillow() -> Any:
    """The modules `Image`, `ImageDraw` and `ImageFont`.

    Raises:
        InputError: Pillow is not installed.
    """
    with extra_needed("demo", "nothing can be drawn", "lightint demo"):
        from PIL import Image, ImageDraw, ImageFont
    return Image, ImageDraw, ImageFont


@lru_cache
def _font(size: int) -> Any:
    _, _, fonts = pillow()
    return fonts.load_default(size)


class Canvas:
    """One picture that is drawn on."""

    def __init__(self, width: int, height: int) -> None:
        images, draws, _ = pillow()
        self.image = images.new("RGB", (width, height), BACKGROUND)
        self._draw = draws.Draw(self.image, "RGBA")

    def text(self, x: float, y: float, words: str, colour: Colour = INK, size: int = 15) -> None:
        """Words whose upper left corner is there."""
        self._draw.text((x, y), words, fill=colour, font=_font(size))

    def picture(self, x: int, y: int, frame: Tensor, side: int) -> None:
        """A frame [3, H, W] in [0, 1], `side` pixels wide and high."""
        images, _, _ = pillow()
        pixels = as_bytes(frame).numpy()
        self.image.paste(images.fromarray(pixels).resize((side, side), images.Resampling.BICUBIC), (x, y))

    def box(self, box: Box, fill: Colour | None = None, outline: Colour | None = None) -> None:
        """A rectangle."""
        self._draw.rectangle(box, fill=fill, outline=outline)

    def line(self, points: list[tuple[float, float]], colour: Colour, width: int = 2) -> None:
        """A line through points."""
        if len(points) > 1:
            self._draw.line(points, fill=colour, width=width, joint="curve")

    def wedge(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """A filled polygon that lets through what is under it."""
        self._draw.polygon(points, fill=(*colour, 90))

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A disc."""
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
