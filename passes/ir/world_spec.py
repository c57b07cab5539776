"""What is known of the world that a model rolls out: how its frames come, what a camera sees, how much it remembers.

Filled from the roles of inputs, the program and the user's options, carried in the policy of a plan, and read by
whatever decides on context frames, steps and views.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from lightint_compile.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class WorldSpec:
    """The facts of one world. The defaults are those of the world that the published rules were made for.

    Attributes:
        chunk: latent frames that come at once.
        first_chunk: those of the first chunk, where it is longer than the others.
        clip: latent frames of a remembered clip, the unit of memory.
        denoising_steps: steps from noise to latents in each chunk.
        memory: most context frames that the unaccelerated model gathers.
        recent: the newest frames among them that it always gathers.
        goes_on: whether a chunk is denoised together with the newest frames of the history, which are known. A first
            chunk has none, and may be longer by any number of frames.
        asked_every: latent frames between coming frames of which each asks for one remembered frame, counted back from
            the last; ``None`` where clips are remembered for the whole chunk.
        pinned: the frame that a memory of single frames always holds: the first one behind the image, unless the
            program says another.
        fov: the field of view by which the model retrieves its memory: full horizontal and vertical angle in degrees.
            Cameras have the same where no intrinsics say otherwise.
        view_depth: how far a camera sees, in the unit of the cameras' translations.
    """

    chunk: int = 4
    first_chunk: int | None = None
    clip: int = 4
    denoising_steps: int = 4
    memory: int = 20
    recent: int = 12
    goes_on: bool = False
    asked_every: int | None = None
    pinned: int = 1
    fov: tuple[float, float] = (60.0, 35.0)
    view_depth: float = 8.0

    def __post_init__(self) -> None:
        angles = isinstance(self.fov, tuple) and len(self.fov) == 2 and all(0 < angle < 180 for angle in self.fov)
        for name, value, fits, fix in (
            ("chunk", self.chunk, isinstance(self.chunk, int) and self.chunk > 0, "1 latent frame or more"),
            ("first_chunk", self.first_chunk, (self.first_chunk or self.chunk) >= self.chunk, f"{self.chunk} or more"),
            ("clip", self.clip, isinstance(self.clip, int) and self.clip > 0, "1 latent frame or more"),
            ("denoising_steps", self.denoising_steps, self.denoising_steps > 0, "1 step or more"),
            ("pinned", self.pinned, self.pinned >= 0, "the number of a latent frame"),
            ("fov", self.fov, angles, "two angles between 0 and 180 degrees"),
            ("view_depth", self.view_depth, self.view_depth > 0, "a distance above 0"),
        ):
            if not fits:
                raise OptionError(f"there is no world with {name}={value!r}", where=name, fix=f"give {fix}")

    @classmethod
    def of(cls, world: WorldSpec, **more: Any) -> Self:
        """What has the facts of ``world``, and ``more``: a policy, rules."""
        return cls(**{**WorldSpec.facts(world), **more})

    def facts(self) -> dict[str, Any]:
        """The facts of the world alone, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(WorldSpec)}

    @property
    def clip_probes(self) -> tuple[int, ...]:
        """Frames of a clip whose views stand for it: the first and the middle one."""
        return (0,) if self.clip == 1 else (0, self.clip // 2)

    @property
    def interior_steps(self) -> tuple[int, ...]:
        """The denoising steps that may be reused: all between the first and the last."""
        return tuple(range(1, self.denoising_steps - 1))

    @property
    def asked_frames(self) -> int:
        """Frames that are asked for in a memory of single frames: those beside the newest."""
        return self.memory - self.recent

    @property
    def least_memory(self) -> int:
        """Context frames that every rule must be free to choose: the first clip, a remembered one, and the newest."""
        return 3 * self.clip

    @property
    def typical_context(self) -> int:
        """Context frames that rules choose once a view was seen before.

        Later passes weigh costs by it: the first chunk that is captured has fewer, and says nothing about the rollout.
        """
        return min(self.least_memory, self.memory)

    @property
    def fewest(self) -> int:
        """Context frames of the first chunk that has any; sizes of a graph begin at 2."""
        return max(min(self.chunk, self.clip), 2)

    def frames(self, chunks: int) -> int:
        """Latent frames of so many chunks."""
        return max(chunks - 1, 0) * self.chunk + (self.first_chunk or self.chunk if chunks else 0)

    def chunks(self, frames: int) -> int:
        """Whole chunks among so many latent frames."""
        return max((frames - (self.first_chunk or self.chunk)) // self.chunk + 1, 0)

    def lead(self, frames: int) -> int | None:
        """Frames in front of the first whole chunk: none, or one, of an image that the video begins with.

        Where the first chunk is longer, as many as it has more, if that is known. ``None`` where ``frames`` are not
        one chunk or more behind that.
        """
        rest = frames % self.chunk
        if self.first_chunk is not None:
            whole = (frames - self.first_chunk) % self.chunk == 0
            return self.first_chunk - self.chunk if whole and frames >= self.first_chunk else None
        return rest if (rest <= 1 or self.goes_on) and frames >= self.chunk else None


PUBLISHED = WorldSpec()
"""The world of the published rules."""

PUBLISHED_FRAMES = WorldSpec(clip=1, asked_every=1, fov=(90.0, 90.0), view_depth=30.0)
"""The world of the published rules for a memory of single frames: its view stands where nothing else is stated."""


@dataclass(frozen=True, kw_only=True)
class StatedWorld:
    """What a user may state of the world; passes that decide have these options. ``None`` leaves it to the program.

    Attributes:
        chunk_frames: latent frames of a chunk, where the denoised latents do not say it.
        clip_frames: latent frames of a remembered clip.
        fov: field of view of the cameras, horizontal and vertical in degrees, instead of what intrinsics say.
        view_depth: how far a camera sees, in the unit of the cameras' translations.
    """

    chunk_frames: int | None = None
    clip_frames: int | None = None
    fov: tuple[float, ...] | None = None
    view_depth: float | None = None

    def world(self, **found: Any) -> WorldSpec:
        """The world with what was ``found`` in a program, and what is stated."""
        stated = {
            "chunk": self.chunk_frames,
            "clip": self.clip_frames,
            "fov": self.fov,
            "view_depth": self.view_depth,
        }
        return WorldSpec(**{**found, **{name: value for name, value in stated.items() if value is not None}})
