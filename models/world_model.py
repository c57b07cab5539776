"""What a world model offers, so that the command line, the benchmarks and the demo can use it by its name alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from lightint_compile.errors import InputError
from lightint_compile.passes.ir.world_spec import WorldSpec


class CameraPath(Protocol):
    """Cameras, one row a latent frame; a family's own class may hold more (actions, for example)."""

    @property
    def extrinsics(self) -> Tensor:
        """World-to-camera matrices [frames, 4, 4], rigid, the first one the identity."""
        ...

    @property
    def intrinsics(self) -> Tensor:
        """Matrices [frames, 3, 3] with focal lengths over image width and height."""
        ...

    def __len__(self) -> int:
        """Latent frames."""
        ...


@dataclass(frozen=True)
class ChunkResult:
    """Chunk number `index`, its `latents` [1, C, chunk, h, w], and `history`, all latents up to and with this chunk."""

    index: int
    latents: Tensor
    history: Tensor


@runtime_checkable
class WorldModel(Protocol):
    """An autoregressive video world model at one size: how to make it, call it and roll it out.

    One call of its module makes one chunk of latent frames from noise, the latents so far, cameras and text.
    """

    @property
    def depth(self) -> int:
        """Transformer blocks."""
        ...

    @property
    def spec(self) -> WorldSpec:
        """Frames of a chunk, how much the model remembers, and what its cameras see."""
        ...

    @property
    def needs_gpu(self) -> bool:
        """Whether the size is too large for a CPU; it is then explained on the meta device, without weights."""
        ...

    @property
    def example_history(self) -> int:
        """Latent frames before the chunk of an example call."""
        ...

    @property
    def roles(self) -> Mapping[str, str]:
        """Roles of the module's inputs, as the option `roles` takes them; inputs without a role are left out."""
        ...

    @property
    def frame_axes(self) -> Mapping[str, int]:
        """Inputs that grow with the video, and their axis of frames: latent ones, or several of the video for each."""
        ...

    def at_depth(self, depth: int) -> Self:
        """The same size with another number of blocks."""
        ...

    def module(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> nn.Module:
        """The module with random weights, ready for inference; on the meta device without weights."""
        ...

    def example_inputs(
        self, history: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict[str, Tensor | None]:
        """The module's arguments in order, by name, for a chunk after `history` latent frames."""
        ...

    def camera_path(self, text: str) -> CameraPath:
        """The path of a pose string such as `"left-31,right-32"`: keys held for a number of latent frames each.

        Raises InputError for a text that cannot be read. The path has one frame more than the counts sum to.
        """
        ...

    def recorded_path(self, poses: Tensor, times: Tensor, frames: int) -> CameraPath:
        """Camera-to-world `poses` [n, 4, 4] at `times` [n] seconds, as `frames` latent frames at the model's speed."""
        ...

    def scene(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
        """What stays the same over a rollout (a first image, a prompt), random; `rollout` takes it back."""
        ...

    def rollout(
        self, call: Callable[..., Tensor], scene: Any, path: CameraPath, *, seed: int = 0
    ) -> Iterator[ChunkResult]:
        """Chunk after chunk along a path; `call` is the module, compiled or not. Frame axes are marked dynamic."""
        ...

    def context_frames(self, path: CameraPath, first: int) -> Sequence[int]:
        """Earlier frames that the chunk which begins with frame `first` looks back at."""
        ...

    def stages(self, module: nn.Module) -> Mapping[str, tuple[nn.Module, str]]:
        """Methods of an uncompiled module that are the stages `text`, `prefill` and `denoise`, as far as there are any.

        Each is an owner and the name of its method.
        """
        ...


class Visit(Protocol):
    """A place in a model's world, for a camera that keys steer."""

    @property
    def walls(self) -> Tensor | None:
        """Bool [rows, columns]: which cells of one scene unit are solid, by z and x; `None` where none are known."""
        ...

    def path(self, held: Sequence[Collection[str]]) -> CameraPath:
        """Where keys take the camera: those held in each latent frame behind the first. Walls stop it."""
        ...

    def cameras(self, path: CameraPath) -> Tensor:
        """World-to-camera matrices [frames, 4, 4] of a path in the coordinates of `walls`."""
        ...

    def scene(self) -> Any:
        """What the model's rollout starts from."""
        ...

    def given(self, path: CameraPath) -> Tensor | None:
        """Latents [1, C, F, h, w] of a first chunk that stands still; `None` where it has to be made."""
        ...

    def frames(self, latents: Tensor) -> Tensor:
        """Pictures [F, 3, H, W] in [0, 1], float32, on the CPU, of latents [1, C, F, h, w]."""
        ...


@runtime_checkable
class Visitable(Protocol):
    """A world model with places that a camera can be steered through."""

    def visit(self, seed: int, device: torch.device, dtype: torch.dtype) -> Visit:
        """The place of a seed."""
        ...


@dataclass(frozen=True)
class VideoDecoder:
    """What makes video frames of a model's latents.

    `module` is a video VAE of diffusers, as `lightint_compile.streaming_decoder` takes it. With `by_chunk` it decodes
    chunks itself: it is called with latents [1, C, F, h, w] and a state, which is `None` at first, and returns frames
    [1, 3, frames, H, W] in [-1, 1] and the state behind them. Either is given latents divided by `scale`. `told` is
    what it is, for people.
    """

    module: nn.Module
    told: str
    scale: float = 1.0
    by_chunk: bool = False


@runtime_checkable
class Shown(Protocol):
    """A world model whose latents can be made into video frames."""

    @property
    def decoders(self) -> Sequence[str]:
        """Names of the decoders that there are for its latents; its release uses the first unless told otherwise."""
        ...

    def video_decoder(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0, name: str = ""
    ) -> VideoDecoder:
        """A decoder at the size of the model: that of a name, or the first of :attr:`decoders`.

        Raises:
            InputError: a package that it needs is not installed.
        """
        ...


@dataclass(frozen=True)
class PromptEncoder:
    """What encodes the prompt of a scene.

    `scene` makes the scene with its text encoded anew, without gradients. `told` is what encodes, for people.
    """

    scene: Callable[[], Any]
    told: str


@runtime_checkable
class Prompted(Protocol):
    """A world model whose scenes have a prompt that a text encoder made."""

    def prompt_encoder(
        self, scene: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> PromptEncoder:
        """The text encoders at the size of the model, and a prompt as long as the scene's; both random.

        Raises:
            InputError: a package that they need is not installed.
        """
        ...


@runtime_checkable
class Trainable(Protocol):
    """A world model that reads trained weights from a folder."""

    def with_weights(self, folder: Path) -> WorldModel:
        """The same model with the weights of a folder.

        Raises:
            InputError: it holds none.
        """
        ...


def with_weights(model: WorldModel, folder: Path | None) -> WorldModel:
    """The model with the weights of a folder, or as it is without one.

    Raises:
        InputError: the model reads no folder, or it holds no weights.
    """
    if folder is None:
        return model
    if not isinstance(model, Trainable):
        why = "its weights are random"
        raise InputError(f"{model} reads no weights", where="--weights", why=why, fix="leave --weights out")
    return model.with_weights(folder)


def turn_and_back(spec: WorldSpec, frames: int = 64) -> str:
    """The pose string of a turn to the left and back, of the whole chunks that make `frames` latent frames or more."""
    chunks = spec.chunks(frames)
    frames = spec.frames(chunks if spec.frames(chunks) >= frames else chunks + 1)
    return f"left-{frames // 2 - 1},right-{frames - frames // 2}"


@dataclass(frozen=True)
class ModelFamily:
    """World models of one architecture: what makes each, by the name of its size, from the smallest to the largest."""

    sizes: Mapping[str, Callable[[], WorldModel]]
