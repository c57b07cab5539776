"""Drawn worlds: a transformer over tokens, and a rollout that gathers context by cameras and denoises in a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.testing.caches import written
from lightint_compile.testing.flows import flow
from lightint_compile.testing.parts import IN_PLACE, RANDOM, WIDTH, Block, State, TextBranch
from lightint_compile.testing.results import RESULTS, Seen
from lightint_compile.testing.several import Several
from lightint_compile.testing.world_features import WorldFeatures

CHUNK = 4
LATENT = 2
_SIGMAS = {1: (1.0, 0.0), 2: (1.0, 0.8, 0.0), 4: (1.0, 0.9375, 0.8333, 0.625, 0.0)}


class World(nn.Module):
    """What both kinds share: the prompt's branch, the state, and the result."""

    place: Tensor

    def __init__(self, f: WorldFeatures) -> None:
        super().__init__()
        self.f = f
        self.text_branch = TextBranch(f) if f.has_text else None
        self.blocks = nn.ModuleList(Block(f) for _ in range(f.blocks))
        self.state = State(f)
        self.result = RESULTS[f.result]
        self.several = None if f.operator == "none" else Several(f.operator, f.operand, f.parts)
        self.fails = False
        if f.fails == "index":
            self.register_buffer("place", torch.zeros(1, dtype=torch.int64))

    def rows(self, text: Tensor | None, pooled: Tensor | None) -> Tensor | None:
        """The prompt's rows ``[batch, length, WIDTH]``."""
        if self.text_branch is None or text is None:
            return None
        rows = self.text_branch(text, pooled)
        return RANDOM["rows"](rows) if self.f.chance == "rows" else rows

    def told(self, x: Tensor, sigma: Any, step: int, wide: bool, name: str) -> Tensor:
        """The tokens with what Python numbers do to them."""
        if self.f.numbers in ("float", "all", "zero-dim", "numpy"):
            x = x * (1.0 + sigma)
        if self.f.numbers == "list":
            x = x + sum(each * x.sin() for each in sigma)
        if self.f.numbers in ("int", "all"):
            x = x + 0.01 * step
        if self.f.numbers in ("bool", "all") and wide:
            x = x * 1.5
        return x.cos() if self.f.numbers == "name" and name == "cosine" else x

    def finished(self, x: Tensor, rows: Callable[[], Tensor | None], given: Tensor, weight: Tensor, **more: Any) -> Any:
        """What is returned of the video ``x``; may fail before it is."""
        if self.fails:
            raise ValueError("the model cannot go on")
        if self.f.fails == "index":
            x = x.index_select(0, self.place.expand(x.shape[0])) + x
        if self.f.chance not in ("none", "rows"):
            x = RANDOM[self.f.chance](x)
        returned: Sequence[Tensor] = ()
        if self.several is not None:
            operands = {"rows": rows(), "given": given, "weight": weight, "cache": more.get("cache")}
            x, returned = self.several(operands, x)
        result = self.result(Seen(x, rows, given, weight, **more))
        return (result, *returned) if returned else result


class Stream(World):
    """Tokens ``[batch, tokens, WIDTH]`` to tokens."""

    def __init__(self, f: WorldFeatures) -> None:
        super().__init__(f)
        self.embed = nn.Linear(WIDTH, WIDTH)

    def forward(
        self,
        latents: Tensor,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
        cache: Any = None,
        sigma: Any = 0.5,
        step: int = 3,
        wide: bool = False,
        name: str = "linear",
    ) -> Any:
        """See :data:`~lightint_compile.testing.results.RESULTS` for what is returned."""
        f, hidden = self.f, []
        given = IN_PLACE[f.in_place](latents) if f.in_place != "none" else latents
        rows, joined, keys = self.rows(text, pooled), 0, None
        x = self.told(self.embed(given), sigma, step, wide, name)
        if rows is not None:
            if f.use == "joined":
                joined = rows.shape[1]
                x = torch.cat([rows.expand(len(x), -1, -1), x], 1)
            elif f.use == "keys":
                keys = rows.expand(len(x), -1, -1)
            else:
                x = x + rows.mean(1, keepdim=True)
        for index, block in enumerate(self.blocks):
            x = flow(f.flow if index == 0 else "none", block, x, keys)
            hidden.append(x)
        x = self.state(x[:, joined:])
        if cache is not None:
            x = written(cache, x, f.cache, step)
        whole = cache if isinstance(cache, Tensor) else None
        return self.finished(
            x,
            lambda: self.rows(text, pooled),
            latents,
            self.embed.weight,
            own=self.state.mean,
            cache=whole,
            hidden=hidden,
        )


class Rollout(World):
    """Noise ``[batch, LATENT, CHUNK, h, w]`` denoised with context from a history ``[batch, LATENT, frames, h, w]``."""

    def __init__(self, f: WorldFeatures) -> None:
        super().__init__(f)
        self.embed = nn.Conv3d(LATENT, WIDTH, 1)
        self.pose = nn.Linear(16, WIDTH)
        self.head = nn.Linear(WIDTH, LATENT)

    def forward(
        self,
        noise: Tensor,
        history: Tensor | None,
        extrinsics: Tensor,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
        sigma: Any = 0.5,
        step: int = 3,
        wide: bool = False,
        name: str = "linear",
    ) -> Any:
        """See :data:`~lightint_compile.testing.results.RESULTS` for what is returned."""
        f, rows, context = self.f, self.rows(text, pooled), None
        if history is not None:
            context = self.prefill(history, extrinsics)
        sigmas, first = _SIGMAS[f.steps], noise
        for now, then in pairwise(sigmas):
            noise = noise + self.velocity(noise, extrinsics[:, -CHUNK:], now, context, rows) * (then - now)
        noise = self.told(noise, sigma, step, wide, name)
        mean = self.state.mean[:LATENT]
        return self.finished(noise, lambda: self.rows(text, pooled), first, self.pose.weight, own=mean)

    def prefill(self, history: Tensor, extrinsics: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        """Keys and values of the context, layer by layer."""
        count = torch.sym_min(history.shape[2], 20)
        chosen = torch.arange(count) + (history.shape[2] - count)
        x, kept = self.tokens(history.index_select(2, chosen), extrinsics.index_select(1, chosen)), []
        for block in self.blocks:
            x, pair = block(x)
            kept.append(pair)
        return kept

    def velocity(
        self,
        latents: Tensor,
        cameras: Tensor,
        sigma: float,
        context: Sequence[tuple[Tensor, Tensor]] | None,
        rows: Tensor | None,
    ) -> Tensor:
        """One prediction for the chunk."""
        x = self.tokens(latents, cameras) + sigma
        keys = rows.expand(len(x), -1, -1) if rows is not None and self.f.use != "sum" else None
        if rows is not None and keys is None:
            x = x + rows.mean(1, keepdim=True)
        for index, block in enumerate(self.blocks):
            x, _ = block(x, keys, None if context is None else context[index])
        batch, _, frames, height, width = latents.shape
        return self.head(x).transpose(1, 2).reshape(batch, LATENT, frames, height, width)

    def tokens(self, latents: Tensor, cameras: Tensor) -> Tensor:
        """Tokens ``[batch, frames * h * w, WIDTH]``."""
        embedded = self.embed(latents)
        per_frame = embedded.shape[3] * embedded.shape[4]
        pose = self.pose(cameras.flatten(2)).repeat_interleave(per_frame, 1)
        return embedded.flatten(2).transpose(1, 2) + pose


def build(f: WorldFeatures) -> World:
    """The world of ``f`` in eval mode, its weights drawn from the seed; the process's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(f.seed)
        world = (Rollout if f.kind == "rollout" else Stream)(f)
        for parameter in world.parameters():
            parameter.data.mul_(1.5)
        return world.eval().requires_grad_(f.trainable).to(getattr(torch, f.dtype))
