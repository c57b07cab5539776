"""A folder of trained weights: `card.json`, `transformer/` and `codec/`, whole or over those of another size.

Sizes of one width share what a training leaves alone: the half of every block that sees the prompt, and a codec that is
taken over. Such a folder has only what moved, and its card names the folder beside it that has the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightint_compile.errors import CheckpointError
from lightint_compile.read_back import UnreadableError, an_object, read_back

from ..checkpoint import load_checkpoint

PARTS = ("transformer", "codec")
"""Folders of safetensors files."""

CARD = "card.json"


def has_weights(folder: Path) -> bool:
    """Whether the folder, with the one that its card names, has both parts."""
    places = [each for each in (folder, rest_of(folder)) if each is not None]
    return all(any((place / part).is_dir() for place in places) for part in PARTS)


def load_part(module: nn.Module, folder: Path, part: str, device: torch.device | str = "cpu") -> nn.Module:
    """Fill a module with one of the parts.

    Raises:
        CheckpointError: as of `load_checkpoint`, or a card that cannot be read.
    """
    rest = rest_of(folder)
    return load_checkpoint(module, folder / part, device, rest=None if rest is None else rest / part)


def card_of(folder: Path) -> dict[str, Any] | None:
    """What the folder's card says; None where there is no card.

    Raises:
        CheckpointError: it cannot be read.
    """
    card = folder / CARD
    if not card.is_file():
        return None
    try:
        return read_back(card, an_object)
    except (OSError, UnreadableError) as error:
        raise unreadable(folder, error) from error


def unreadable(folder: Path, error: Exception) -> CheckpointError:
    """The error of a card that says something else than a training's."""
    why = f"it is no card of a training: {type(error.__cause__ or error).__name__}"
    return CheckpointError("The card cannot be read.", where=str(folder / CARD), why=why, fix="take it out")


def rest_of(folder: Path) -> Path | None:
    """The folder beside this one that has what this one lacks, by its card; None where it is whole.

    Raises:
        CheckpointError: the card cannot be read, or names anything but a folder beside this one.
    """
    card, name = folder / CARD, (card_of(folder) or {}).get("rest")
    if name is None:
        return None
    is_name = isinstance(name, str) and name not in ("", "..") and Path(name).name == name
    if not is_name or not (folder.parent / name).is_dir():
        fix = f"put it there: {folder.parent} must have a folder of that name"
        raise CheckpointError(f"The rest of the weights, {name!r}, is not there.", where=str(card), fix=fix)
    return folder.parent / name
