"""What a generated model is made of, as plain data: drawn from a seed, written as JSON, and made simpler to shrink."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from lightint_compile.errors import OptionError, did_you_mean

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
class Features:
    """One generated model. Field names and values are those of :data:`CHOICES`; ``seed`` draws weights and inputs.

    Attributes:
        key_heads: heads of key and value in grouped attention; 0 for as many as the query has.
        prefix: where the text tokens stand among the keys.
        context: keys and values of earlier frames join those of this chunk.
        escape: the last layer of every step returns its attention weights, so that it must not be fused.
        dead_code: nodes that nobody reads, put into the captured graph in an order of their own.
        gate: a softmax that is no attention.
    """

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

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The model written down as ``data``; a feature that is not given is the simplest.

        Raises:
            OptionError: an unknown feature, or a value that it does not have.
        """
        for name, value in data.items():
            if name not in CHOICES and name != "seed":
                raise OptionError(f"a model has no feature {name!r}", fix=did_you_mean(name, CHOICES))
            if name in CHOICES and value not in CHOICES[name]:
                raise OptionError(f"{value!r} is not a value of {name}", why=f"known: {CHOICES[name]}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The features that are not the simplest."""
        defaults = type(self)()
        data = dataclasses.asdict(self)
        return {name: value for name, value in data.items() if value != getattr(defaults, name)}

    def simpler(self) -> Iterator[Self]:
        """Every model with one feature at its simplest."""
        for name, choices in CHOICES.items():
            if getattr(self, name) != choices[0]:
                yield dataclasses.replace(self, **{name: choices[0]})

    @property
    def attentions(self) -> int:
        """How many attentions the model has."""
        return self.layers * self.steps

    @property
    def fusable(self) -> int:
        """How many of them can become one call."""
        fused_already = self.product == "fused"
        return self.attentions - (self.steps if self.escape and not fused_already else 0)
