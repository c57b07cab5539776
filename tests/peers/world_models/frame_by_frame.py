"""Models that roll a sliding window of frames on by one, each frame with its own level of noise, and keep no cache."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stubs
import torch
from case import WIDTH, Case
from torch import Tensor, nn


def _oasis() -> Case:
    window, side = 6, 16

    def build(root: Path) -> nn.Module:
        timm = Path(str(importlib.util.find_spec("timm").origin)).parent
        for name in ("timm", "timm.layers", "timm.models"):  # their own imports need torchvision
            stubs.package(name, timm / name.partition(".")[2])
        vision: Any = stubs.package("timm.models.vision_transformer")
        vision.Mlp = importlib.import_module("timm.layers.mlp").Mlp
        sys.path.insert(0, str(root))
        code = importlib.import_module("dit")
        image = {"input_h": side, "input_w": side, "patch_size": 2, "in_channels": 4, "max_frames": window}
        return stubs.filled(code.DiT(**image, hidden_size=WIDTH, depth=3, num_heads=2, external_cond_dim=5))

    def roll(call: Callable[..., Any]) -> list[Tensor]:
        draw, total, steps = torch.Generator().manual_seed(1), 12, 3
        kept = torch.linspace(0.9999, 0.01, 1000).view(-1, 1, 1, 1)
        actions = torch.randn(1, total, 5, generator=draw)
        levels = torch.linspace(-1, 999, steps + 1)
        video = torch.randn(1, 2, 4, side, side, generator=draw)
        for frame in range(2, total):
            video = torch.cat([video, torch.randn(1, 1, 4, side, side, generator=draw)], 1)
            start = max(0, frame + 1 - window)
            for index in reversed(range(1, steps + 1)):
                known = torch.full((1, frame), 14, dtype=torch.long)
                now, after = (torch.full((1, 1), int(levels[at]), dtype=torch.long) for at in (index, index - 1))
                after = torch.where(after < 0, now, after)
                now, after = (torch.cat([known, each], 1)[:, start:] for each in (now, after))
                seen = video.clone()[:, start:]
                speed = call(seen, now, actions[:, start : frame + 1])
                clean = kept[now].sqrt() * seen - (1 - kept[now]).sqrt() * speed
                noise = ((1 / kept[now]).sqrt() * seen - clean) / (1 / kept[now] - 1).sqrt()
                rest = kept[after]
                rest[:, :-1] = 1
                if index == 1:
                    rest[:, -1:] = 1
                video[:, -1:] = (rest.sqrt() * clean + noise * (1 - rest).sqrt())[:, -1:]
        return [video]

    return Case("open-oasis", build, roll)


CASES = {"Oasis": _oasis()}
