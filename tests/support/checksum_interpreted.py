"""Run as a program: the checksum kernel in Triton's CPU interpreter against the specification; results as JSON.

A program of its own because Triton decides between compiling and interpreting when the kernels are first imported.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from lightint_compile.kernels.checksum_words import sums_of
from lightint_compile.kernels.portable import checksum

PART = checksum.WORD * checksum._BLOCK * checksum._TURNS
"""Bytes that one program reads."""

CASES = ((0, 4), (0, 1), (0, 3), (0, 0), (16, 2), (0, PART), (0, PART + 1), (1, PART + 7), (2, 17), (4, 2 * PART + 12))
"""Where a piece begins behind an aligned address, and its size in bytes."""


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = torch.randint(0, 256, (2 * PART + 64,), dtype=torch.uint8, generator=generator)
    start = -memory.data_ptr() % checksum.ALIGNED
    pieces = [memory[start + first : start + first + size] for first, size in CASES]
    found = checksum.sums_at(
        [piece.data_ptr() for piece in pieces], [piece.numel() for piece in pieces], torch.device("cpu")
    )
    expected = torch.cat([sums_of(piece) for piece in pieces])
    equal = {str(case): torch.equal(*pair) for case, *pair in zip(CASES, found, expected, strict=True)}
    print(json.dumps(equal))


if __name__ == "__main__":
    main()
