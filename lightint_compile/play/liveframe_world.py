"""A model whose world can be walked in, for LiveFrame's harness (PyPI `liveframe`).

``liveframe world run lightint_compile.play.liveframe_world:Accelerated --suite quick`` runs it.

`Eager` is the model as it is, `Accelerated` the same under the preset `all`. Another size, weights or preset is a
subclass with other attributes.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, runtime_checkable

from lightint_compile.errors import InputError, StateError, extra_needed
from lightint_compile.evaluating.recordings import LATENT_RATE
from lightint_compile.models.pixels import as_bytes
from lightint_compile.models.registry import TRUE, world_model
from lightint_compile.play.opening import Played
from lightint_compile.play.walking import Walking

KEYS = {"W": "w", "S": "s", "A": "a", "D": "d", "L": "left", "R": "right"}
"""LiveFrame's tokens of motion by the keys that they hold; looking up and down moves no camera of such a world."""

STAY = "0"


@runtime_checkable
class Framed(Protocol):
    """A world model that decodes its own frames."""

    @property
    def pixels(self) -> int:
        """Height and width of a frame."""
        ...


class Eager:
    """A place walked by the model as it is; implements LiveFrame's `WorldBackend`.

    The harness's start image is not used: a walk begins with the rendered view of the place of its seed, which stands
    still for the chunk that is given and not counted.

    Attributes:
        model: `FAMILY:SIZE`, one that decodes its own frames.
        preset: what the model is compiled with; as it is where there is none.
        options: further ones of the backend.
        weights: a folder of trained weights; the package's where there is none.
        device: "cpu" or "cuda"; a GPU where there is one.
    """

    model: ClassVar[str] = TRUE
    preset: ClassVar[str | None] = None
    options: ClassVar[Mapping[str, Any]] = {}
    weights: ClassVar[Path | None] = None
    device: ClassVar[str | None] = None

    def __init__(self) -> None:
        self._played: Played | None = None
        self._walk: Walking | None = None
        self._emitted = 0

    @property
    def capabilities(self) -> Any:
        """LiveFrame's `WorldCapabilities`.

        Raises:
            InputError: LiveFrame is not installed, or the model decodes no frames.
        """
        with extra_needed("liveframe", "LiveFrame cannot run the world", "liveframe world run"):
            from liveframe.world.backend import WorldCapabilities
        world = world_model(self.model)
        if not isinstance(world, Framed):
            why, fix = "its latents are decoded by no codec here", f"name {TRUE} or another size of it"
            raise InputError(f"{self.model} cannot be run by LiveFrame", where="model", why=why, fix=fix)
        how = f"{self.preset or 'eager'}; starts in a place of its own, not in the suite's scene"
        return WorldCapabilities(
            name=f"lightint {self.model} ({how})",
            interaction_mode="interactive",
            native_fps=LATENT_RATE,
            chunk_frames=world.spec.chunk,
            resolution=(world.pixels, world.pixels),
            actions=frozenset([*KEYS, STAY]),
        )

    def load(self) -> None:
        """Make the model, and compile what its calls need, which LiveFrame counts as cold start."""
        self._played = Played.open(
            self.model, preset=self.preset or "off", device=self.device, weights=self.weights, options=self.options
        )
        if self.preset is not None:
            collections.deque(self._played.warm_up(), maxlen=0)

    def reset(self, image: Any, prompt: str | None, seed: int) -> None:
        """Begin a walk in the place of the seed; `image` and `prompt` are not used."""
        if self._played is None:
            raise StateError("there is no model yet", where="LiveFrame", fix="call load first")
        self._walk, self._emitted = self._played.walking(seed), 0
        self._walk.begin()

    def step(self, actions: Sequence[str]) -> Iterator[Any]:
        """The next chunk while these actions go on, as one `NativeFrame` of uint8 frames [F, height, width, 3]."""
        from liveframe.engine import NativeFrame

        if self._walk is None:
            raise StateError("there is no walk yet", where="LiveFrame", fix="call reset first")
        keys = [KEYS[action] for action in actions if action != STAY]
        accelerated = self.preset is not None
        made = self._walk.go(keys, accelerated) if keys else self._walk.stay(accelerated)
        frames = as_bytes(made.frames)
        yield NativeFrame(self._emitted, frames.numpy(), len(frames))
        self._emitted += 1

    def run_script(self, script: Any) -> NoReturn:
        """Never: the harness steps worlds that are interactive."""
        raise StateError("a world is walked step by step", where="LiveFrame", fix="call step")

    def close(self) -> None:
        """Let the model go."""
        self._played = self._walk = None


class Accelerated(Eager):
    """The same by lightint."""

    preset = "all"
