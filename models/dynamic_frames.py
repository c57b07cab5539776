"""The axes of a rollout's inputs that grow from chunk to chunk."""

from __future__ import annotations

import torch
from torch import Tensor


def mark_frames_dynamic(history: Tensor | None, *rows: Tensor) -> None:
    """Tell torch.compile that the frame axes vary: axis 2 of the history, axis 1 of cameras and actions.

    Without a history nothing is marked: the first chunk always has the same length.
    """
    if history is None:
        return
    torch._dynamo.mark_dynamic(history, 2)
    for each in rows:
        torch._dynamo.mark_dynamic(each, 1)
