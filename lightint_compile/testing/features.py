"""What a generated model is made of, as plain data: drawn from a seed, written as JSON, and made simpler to shrink."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from lightint_compile.testing.drawn import Drawn

#: The choices for every feature; the first one is the simplest, and what shrinking tries.
CHOICES: dict[str, tuple[Any, ...]] = {
    "layers": (1, 2),
    "steps": (1, 2, 3),
    "batch": (1, 2),
    "frames": (2, 3),
    "heads": (2, 4),
    "key_heads": (0, 1, 2),
    "repeat": ("interleave", "expand"),
    "norm": ("none", "layer", "rms"),
    "affine": (False, True),
    "query_norm": (False, True),
    "rope": ("none", "interleaved", "split"),
    "product": ("matmul", "einsum", "bmm", "baddbmm", "tokens-first", "fused"),
    "softmax": ("softmax", "exp", "logsumexp", "less-maximum"),
    "scale": ("after", "divided", "query", "key", "split"),
    "key_layout": ("transpose", "permute", "stored"),
    "mask": ("none", "bool", "where", "bias", "causal"),
    "upcast": (False, True),
    "prefix": ("none", "first", "last"),
    "context": (False, True),
    "modulation": ("none", "frame"),
    "escape": (False, True),
    "dead_code": (False, True),
    "reshapes": (False, True),
    "extra_output": (False, True),
    "gate": (False, True),
    "dtype": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class Features(Drawn):
    """One generated model. Field names and values are those of :data:`CHOICES`; ``seed`` draws weights and inputs.

    Attributes:
        key_heads: heads of key and value in grouped attention; 0 for as many as the query has.
        prefix: where the text tokens stand among the keys.
        context: keys and values of earlier frames join those of this chunk.
        escape: the last layer of every step returns its attention weights, so that it must not be fused.
        dead_code: nodes that nobody reads, put into the captured graph in an order of their own.
        gate: a softmax that is no attention.
    """

    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = CHOICES

    seed: int = 0
    layers: int = 1
    steps: int = 1
    batch: int = 1
    frames: int = 2
    heads: int = 2
    key_heads: int = 0
    repeat: str = "interleave"
    norm: str = "none"
    affine: bool = False
    query_norm: bool = False
    rope: str = "none"
    product: str = "matmul"
    softmax: str = "softmax"
    scale: str = "after"
    key_layout: str = "transpose"
    mask: str = "none"
    upcast: bool = False
    prefix: str = "none"
    context: bool = False
    modulation: str = "none"
    escape: bool = False
    dead_code: bool = False
    reshapes: bool = False
    extra_output: bool = False
    gate: bool = False
    dtype: str = "float32"

    @classmethod
    def from_seed(cls, seed: int) -> Self:
        """The model that a seed stands for, the same in every version of Python."""
        draw = random.Random(seed)
        drawn = {name: draw.choice(choices) for name, choices in CHOICES.items()}
        # Deep models cost time and find little more than shallow ones: most are drawn shallow.
        drawn["layers"] = draw.choice((1, 1, 1, 1, 1, 2))
        drawn["steps"] = draw.choice((1, 1, 1, 1, 1, 1, 2, 3))
        return cls(seed=seed, **drawn)

    @property
    def attentions(self) -> int:
        """How many attentions the model has."""
        return self.layers * self.steps

    @property
    def fusable(self) -> int:
        """How many of them can become one call."""
        fused_already = self.product == "fused"
        return self.attentions - (self.steps if self.escape and not fused_already else 0)
