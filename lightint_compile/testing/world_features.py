"""What a drawn world is made of; each slot holds one small idea of a module, and the first choice leaves it out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from lightint_compile.testing.drawn import Drawn

#: Ways of handing out what is kept between calls without a copy in eager: composite operators that may return a view.
VIEWS = ("text", "contiguous", "type_as", "dropout", "einsum", "broadcast", "sum_to_size", "expand", "reshape", "to")

CHOICES: dict[str, tuple[Any, ...]] = {
    "kind": ("stream", "rollout"),
    "blocks": (1, 2, 3),
    "text": ("none", "linear", "norm", "buffer", "ids", "pooled", "deep"),
    "use": ("sum", "keys", "joined"),
    "layout": ("plain", "slice", "transposed", "expanded", "shared"),
    "result": (
        *("one", "twice", "view", "views", "input", "input-view", "weight", "buffer", "dict", "nested", "empty"),
        *VIEWS,
        *(f"{view}-twice" for view in VIEWS),
    ),
    "attention": ("fused", "matmul", "einsum", "bmm", "baddbmm", "tokens-first"),
    "cache": ("none", "slice", "index", "roll"),
    "state": ("none", "count", "mean", "assign"),
    "flow": ("none", "cond", "checkpoint", "break", "autocast", "vmap", "item", "grad-off", "reduce", "while"),
    "rows": (False, True),
    "numbers": ("none", "float", "int", "bool", "all"),
    "train": ("none", "norm", "branch"),
    "steps": (1, 2, 4),
    "trainable": (False, True),
    "dtype": ("float32", "float64"),
}

#: How often a slot is left out, so that a world has a few ideas at once and not all of them.
_LEFT_OUT = {"text": 0.15, "use": 0.4, "result": 0.2, "kind": 0.96, "blocks": 0.6, "steps": 0.4, "numbers": 0.7}
_USUALLY_LEFT_OUT = 0.75


@dataclass(frozen=True)
class WorldFeatures(Drawn):
    """One drawn world. Field names and values are those of :data:`CHOICES`; ``seed`` draws weights.

    Attributes:
        kind: ``stream`` is a transformer over tokens; ``rollout`` gathers context by cameras and denoises in a loop.
        text: the branch that depends on the prompt alone, which a memo keeps.
        use: how the video reads it: added, as keys, or joined in front of the tokens.
        layout: what the prompt tensor is a view of.
        result: what is returned besides the video.
        cache: how a cache that arrives as an input is written in place.
        state: how a buffer changes in the forward pass.
        rows: modulation of few rows, repeated for every token.
        numbers: Python numbers among the arguments.
        train: what differs in training mode.
        steps: denoising steps of a rollout.
        trainable: weights want gradients.
    """

    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = CHOICES
    WHAT: ClassVar[str] = "world"

    seed: int = 0
    kind: str = "stream"
    blocks: int = 1
    text: str = "none"
    use: str = "sum"
    layout: str = "plain"
    result: str = "one"
    attention: str = "fused"
    cache: str = "none"
    state: str = "none"
    flow: str = "none"
    rows: bool = False
    numbers: str = "none"
    train: str = "none"
    steps: int = 1
    trainable: bool = False
    dtype: str = "float32"

    @classmethod
    def drawn(cls, draw: random.Random, seed: int) -> Self:
        """A world by chance."""
        values = {}
        for name, choices in CHOICES.items():
            left_out = draw.random() < _LEFT_OUT.get(name, _USUALLY_LEFT_OUT)
            chosen = draw.choice(choices[1:])
            values[name] = choices[0] if left_out else chosen
        return cls(seed=seed, **values)

    @property
    def has_text(self) -> bool:
        """Whether there is a prompt."""
        return self.text != "none"

    @property
    def is_stateless(self) -> bool:
        """Whether calls at the same time cannot meet in what they write."""
        return self.cache == "none" and self.state == "none" and self.train == "none"
