"""What a drawn world is made of; each slot holds one small idea of a module, and the first choice leaves it out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from lightint_compile.testing.drawn import Drawn
from lightint_compile.testing.several import OPERATORS, USES

#: How a cache is written in place; a list, a dict, and a dict whose tensors are replaced arrive as arguments as well.
CACHES = (
    *("slice", "index", "roll", "put", "scatter", "masked", "whole", "data", "attend", "list", "dict", "grown"),
    *("moved", "halves"),
)

FLOWS = (
    *("none", "cond", "checkpoint", "break", "autocast", "vmap", "item", "grad-off", "grad-on", "reduce", "while"),
    *("disabled", "custom", "custom-write", "function", "complex", "numpy", "selected", "func-grad", "jvp"),
    *("tried", "loop"),
)

#: Ways of handing out what is kept between calls without a copy in eager: composite operators that may return a view.
VIEWS = ("text", "contiguous", "type_as", "dropout", "einsum", "broadcast", "sum_to_size", "expand", "reshape", "to")

CHOICES: dict[str, tuple[Any, ...]] = {
    "kind": ("stream", "rollout"),
    "blocks": (1, 2, 3),
    "text": ("none", "linear", "norm", "buffer", "ids", "pooled", "deep"),
    "use": ("sum", "keys", "joined"),
    "layout": ("plain", "slice", "transposed", "expanded", "shared", "overlapping", "negated"),
    "result": (
        *("one", "twice", "view", "views", "input", "input-view", "weight", "buffer", "dict", "nested", "empty"),
        *("dataclass", "named", "ordered", "sizes", "scalars", "complex", "mask", "changed", "hidden", "cache"),
        "weight-view",
        *VIEWS,
        *(f"{view}-twice" for view in VIEWS),
    ),
    "attention": ("fused", "matmul", "einsum", "bmm", "baddbmm", "tokens-first"),
    "cache": ("none", *CACHES),
    "state": ("none", "count", "mean", "assign", "number", "table", "list"),
    "flow": FLOWS,
    "rows": (False, True),
    "numbers": ("none", "float", "int", "bool", "all", "zero-dim", "list", "name", "numpy"),
    "train": ("none", "norm", "branch", "dropout"),
    "steps": (1, 2, 4),
    "trainable": (False, True),
    "dtype": ("float32", "float64", "bfloat16"),
    "operator": ("none", *OPERATORS),
    "operand": ("video", "rows", "given", "weight", "cache"),
    "parts": tuple(USES),
    "in_place": ("none", "whole", "view", "slice", "out", "data", "and-back"),
    "chance": ("none", "noise", "dropout", "twice", "rows", "unused"),
    "fails": ("none", "raise", "index"),
}

#: How often a slot is left out, so that a world has a few ideas at once and not all of them.
_LEFT_OUT = {
    **{"text": 0.15, "use": 0.4, "result": 0.2, "kind": 0.96, "blocks": 0.6, "steps": 0.4, "numbers": 0.7},
    **{"operator": 0.75, "operand": 0.3, "parts": 0.2, "in_place": 0.92, "chance": 0.92, "fails": 0.92, "flow": 0.75},
}
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
        operator: one with several results, applied to ``operand``; ``parts`` says what becomes of its results.
        in_place: how the world writes into its first argument.
        chance: where it draws random numbers.
        fails: how a call can fail when state and cache are written already.
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
    operator: str = "none"
    operand: str = "video"
    parts: str = "all"
    in_place: str = "none"
    chance: str = "none"
    fails: str = "none"

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
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        return self.chance != "none" or self.train == "dropout"

    @property
    def is_stateless(self) -> bool:
        """Whether calls at the same time cannot meet in what they write."""
        slots = (self.cache, self.state, self.train, self.in_place, self.chance)
        return all(slot == "none" for slot in slots)
