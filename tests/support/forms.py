"""The forms of the small world as one axis of tests: what is compiled, and how a chunk is made by calls of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import torch
from formed_world import (
    CHUNK,
    PLANE,
    SIGMAS,
    Fill,
    Keys,
    OwnFill,
    OwnSlide,
    Pair,
    Part,
    Rolled,
    Slide,
    Step,
    Whole,
    World,
    moved,
)
from quick_variants import mostly_slow
from torch import Tensor
from toy_world import there_and_back

FRAMES = 16
"""Frames of the made-up video and of its camera path."""

EVERY_TILE = "sparse-attention{tile=2x2x2,density=1.0,context-density=1.0,coverage=0.999999999,min-tokens=0}"
"""All keys are read, but by the operator."""

Compiler: TypeAlias = Callable[[Part], Callable[..., Any]]


def compiled(dynamic: bool, **options: Any) -> Compiler:
    """Compiles a part under ``options``; no graph may break, and a fault raises."""
    settings = {"delegate": "eager", "strict": True, **options}
    sizes = None if dynamic else False
    return lambda part: torch.compile(part, backend="lightint", fullgraph=True, dynamic=sizes, options=settings)


@dataclass(frozen=True)
class Scene:
    """What a chunk is made from: all that a caller gives, whatever the form."""

    noise: Tensor
    history: Tensor
    cameras: Tensor
    noisy: Tensor
    text: Tensor

    @classmethod
    def behind(cls, frames: int, seed: int = 0) -> Self:
        """A chunk behind ``frames`` frames; ``seed`` draws noise, text, and how noisy the first frame is."""
        video = torch.randn(1, 4, FRAMES, 8, 8, generator=torch.Generator().manual_seed(1))
        draw = torch.Generator().manual_seed(seed)
        noisy = torch.cat([torch.rand(1, generator=draw), torch.ones(CHUNK - 1)])
        return cls(
            noise=torch.randn(1, 4, CHUNK, 8, 8, generator=draw),
            history=video[:, :, :frames].contiguous(),
            cameras=there_and_back(FRAMES + CHUNK)[:, : frames + CHUNK].contiguous(),
            noisy=noisy.repeat_interleave(PLANE)[None],
            text=torch.randn(1, 5, 8, generator=draw),
        )

    def to(self, rounded: torch.dtype, dtype: torch.dtype) -> Scene:
        """A copy with the values of one dtype in another one."""
        return Scene(*(each.to(rounded).to(dtype, copy=True) for each in vars(self).values()))

    def told(self, text: Tensor) -> Scene:
        """The same with another text."""
        return dataclasses.replace(self, text=text)

    @property
    def frames(self) -> int:
        return self.history.shape[2]

    @property
    def views(self) -> Tensor:
        """The cameras of the chunk."""
        return self.cameras[:, -CHUNK:].contiguous()


class Side:
    """One of several runs that are compared: a world of its own, and what calls it. Here a chunk is one call.

    Attributes:
        calls: what runs each part, by name.
        kept: keys and values that the caller holds, block by block.
    """

    PARTS: ClassVar[dict[str, type[Part]]] = {"whole": Whole}

    def __init__(self, world: World, compiler: Compiler = lambda part: part, *, dynamic: bool = False) -> None:
        self.world, self.dynamic = copy.deepcopy(world), dynamic
        self.calls = {name: compiler(part(self.world)) for name, part in self.PARTS.items()}
        self.kept: list[Pair] = []

    def chunk(self, scene: Scene, touch: Callable[[Side], None] | None = None) -> list[Tensor]:
        """Everything that the calls of a chunk return; ``touch`` is called in front of the first step."""
        given = scene.noise, self.marked(scene.history, 2), self.marked(scene.cameras, 1)
        return [self.calls["whole"](*given, scene.noisy, scene.text)]

    def marked(self, value: Tensor, axis: int) -> Tensor:
        """``value``, whose size along ``axis`` may be another one in the next call."""
        if self.dynamic:
            torch._dynamo.mark_dynamic(value, axis)
        return value

    @property
    def held(self) -> list[Tensor]:
        """The tensors that the caller holds."""
        return [each for pair in self.kept for each in pair]


class Stepped(Side):
    """A call makes keys and values of the context, and every step is a call."""

    def chunk(self, scene: Scene, touch: Callable[[Side], None] | None = None) -> list[Tensor]:
        self.prefill(scene)
        if touch is not None:
            touch(self)
        found, latents = [each.clone() for each in self.held], scene.noise
        for number in range(len(SIGMAS) - 1):
            found.append(self.step(scene, number, latents))
            latents = moved(latents, found[-1], number)
        return [*found, latents]

    def prefill(self, scene: Scene) -> None:
        raise NotImplementedError

    def step(self, scene: Scene, number: int, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def rewind(self, frames: int) -> None:
        """Only the first ``frames`` frames of the context count from here on."""
        raise NotImplementedError


class CallByCall(Stepped):
    """The caller is given keys and values, and gives them to every step."""

    PARTS: ClassVar[dict[str, type[Part]]] = {"keys": Keys, "step": Step}

    def prefill(self, scene: Scene) -> None:
        kept = self.calls["keys"](self.marked(scene.history, 2), self.marked(scene.cameras, 1))
        self.kept = [(self.marked(key, 1), self.marked(value, 1)) for key, value in kept]

    def step(self, scene: Scene, number: int, latents: Tensor) -> Tensor:
        result: Tensor = self.calls["step"](latents, scene.noisy * SIGMAS[number], scene.views, scene.text, self.kept)
        return result

    def rewind(self, frames: int) -> None:
        cut = iter([self.marked(each[:, : frames * PLANE].contiguous(), 1) for each in self.held])
        self.kept = list(zip(cut, cut, strict=True))


class InPlace(Stepped):
    """Keys and values are written into buffers that the caller holds throughout."""

    PARTS: ClassVar[dict[str, type[Part]]] = {"fill": Fill, "slide": Slide}

    def __init__(self, world: World, compiler: Compiler = lambda part: part, *, dynamic: bool = False) -> None:
        super().__init__(world, compiler, dynamic=dynamic)
        self.kept, self.start = self.buffers(), 0

    def buffers(self) -> list[Pair]:
        """Empty ones, for keys and for values in every block."""
        return [(key.clone(), value.clone()) for key, value in self.world.own]

    def prefill(self, scene: Scene) -> None:
        self.calls["fill"](self.marked(scene.history, 2), self.marked(scene.cameras, 1), self.kept)
        self.start = scene.frames * PLANE

    def step(self, scene: Scene, number: int, latents: Tensor) -> Tensor:
        given = latents, scene.noisy * SIGMAS[number], scene.views, scene.text
        result: Tensor = self.calls["slide"](*given, self.kept, self.start)
        return result

    def rewind(self, frames: int) -> None:
        self.start = frames * PLANE


class OwnBuffers(InPlace):
    """The buffers are the module's own."""

    PARTS: ClassVar[dict[str, type[Part]]] = {"own fill": OwnFill, "own slide": OwnSlide}

    def buffers(self) -> list[Pair]:
        return self.world.own

    def prefill(self, scene: Scene) -> None:
        self.calls["own fill"](self.marked(scene.history, 2), self.marked(scene.cameras, 1))
        self.start = scene.frames * PLANE

    def step(self, scene: Scene, number: int, latents: Tensor) -> Tensor:
        given = latents, scene.noisy * SIGMAS[number], scene.views, scene.text
        result: Tensor = self.calls["own slide"](*given, self.start)
        return result


class LoopInPlace(InPlace):
    """All steps are one call, and each writes to the caller's buffers."""

    PARTS: ClassVar[dict[str, type[Part]]] = {"fill": Fill, "rolled": Rolled}

    def chunk(self, scene: Scene, touch: Callable[[Side], None] | None = None) -> list[Tensor]:
        self.prefill(scene)
        if touch is not None:
            touch(self)
        return [self.step(scene, 0, scene.noise)]

    def step(self, scene: Scene, number: int, latents: Tensor) -> Tensor:
        given = latents, scene.noisy, scene.views, scene.text
        result: Tensor = self.calls["rolled"](*given, self.kept, self.start)
        return result


FORMS: dict[str, type[Side]] = {
    "module": Side,
    "call by call": CallByCall,
    "in-place cache": InPlace,
    "own buffers": OwnBuffers,
    "loop in place": LoopInPlace,
}


QUICK = ("call by call", "in-place cache")
"""Forms of the fast suite; the passes' own tests run on whole chunks."""


def every_form(quick: Collection[str] = QUICK) -> list[Any]:
    """Parameters of a test; forms that are not of the fast suite are marked slow."""
    return mostly_slow(FORMS, quick)


class Trio:
    """One form three times: compiled, as it is, and in float64; what happens to one happens to all."""

    def __init__(self, form: str, world: World, compiler: Compiler, *, dynamic: bool) -> None:
        self.dtype = world.head.weight.dtype
        made = FORMS[form]
        self.compiled = made(world, compiler, dynamic=dynamic)
        self.eager, self.exact = made(world), made(world.in_float64())

    @property
    def sides(self) -> Sequence[Any]:
        return self.compiled, self.eager, self.exact

    def each(self, act: Callable[[Any], Any]) -> list[Any]:
        """What ``act`` gives on each side."""
        return [act(side) for side in self.sides]

    def of(self, scene: Scene) -> list[tuple[Any, Scene]]:
        """The sides, each with the scene in its dtype."""
        dtypes = self.dtype, self.dtype, torch.float64
        return [(side, scene.to(self.dtype, dtype)) for side, dtype in zip(self.sides, dtypes, strict=True)]

    def chunk(self, scene: Scene, touch: Callable[[Side], None] | None = None) -> list[list[Tensor]]:
        """What a chunk gives on each side, with what the caller holds behind it."""
        results = [[*side.chunk(own, touch), *side.held] for side, own in self.of(scene)]
        versions = [[each._version for each in side.held] for side in self.sides]
        assert versions[0] == versions[1], "as many writes to what the caller holds"
        return results


def farther(got: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor], error: float) -> str:
    """How results are farther from the exact ones than eager's, in words; empty when they are not.

    Args:
        error: what a pass may add, relative to the largest exact value.
    """
    for index, (ours, plain, truth) in enumerate(zip(got, eager, exact, strict=True)):
        assert ours.shape == plain.shape and ours.dtype == plain.dtype
        off, base = (float((each.double() - truth).abs().max()) for each in (ours, plain))
        largest = float(truth.abs().max())
        if not off <= 2 * base + (8 * torch.finfo(plain.dtype).eps + error) * largest:
            return f"result {index} is off by {off:.3g}, eager by {base:.3g}, of {largest:.3g}"
    return ""
