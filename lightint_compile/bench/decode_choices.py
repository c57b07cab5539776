"""What a command line may ask of decoding. It is read before torch is loaded."""

from __future__ import annotations

from enum import StrEnum


class Order(StrEnum):
    """When a chunk is decoded."""

    SERIAL = "serial"
    OVERLAP = "overlap"


class Backend(StrEnum):
    """What compiles the decoder."""

    EAGER = "eager"
    INDUCTOR = "inductor"
    LIGHTINT = "lightint"
