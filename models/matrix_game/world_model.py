"""Matrix-Game-3.0 as a world model that the command line, the benchmarks and the demo can use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lightint_compile.passes.ir.world_spec import WorldSpec

from ..camera_paths.pose_files import RecordedPath
from ..random_weights import fill_random
from ..text_encoders import umt5_encoder
from ..video_vaes import wan_decoder
from ..world_model import CameraPath, ChunkResult, ModelFamily, PromptEncoder, VideoDecoder
from .checkpoint import to_int8
from .clip import MatrixGameClip, video_frames
from .config import MatrixGameConfig
from .examples import example_inputs, example_scene
from .memory import FAR, HALF_ANGLE, REFERENCE_STEP, camera_poses, remembered
from .rollout import Scene, rollout
from .sizes import FRAMES_PER_LATENT
from .trajectory import MOVE_SPEED, Trajectory, recorded_trajectory

DECODER_WIDTHS = {"mg_lightvae_v2": 0.25, "mg_lightvae": 0.5, "wan": 1.0}
"""Decoders that the release knows, and what is left of Wan 2.2's width in each; the first is its default."""


@dataclass(frozen=True)
class MatrixGame:
    """A size of Matrix-Game-3.0; see `WorldModel`. A chunk is a clip.

    `text_tokens` is the length of an example prompt.
    """

    config: MatrixGameConfig
    text_tokens: int = 5
    needs_gpu: bool = False

    roles: ClassVar[Mapping[str, str]] = {
        "noise": "latent",
        "history": "context",
        "extrinsics": "camera",
        "mouse": "action",
        "keyboard": "action",
        "text": "text",
    }
    frame_axes: ClassVar[Mapping[str, int]] = {"history": 2, "extrinsics": 1, "mouse": 1, "keyboard": 1}

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.config.depth

    @property
    def example_history(self) -> int:
        """Two clips."""
        return self.config.latent_frames(2)

    @property
    def spec(self) -> WorldSpec:
        """Context is what a clip overlaps with, and single frames of memory."""
        config = self.config
        return WorldSpec(
            chunk=config.new_frames,
            first_chunk=config.first_clip,
            clip=1,
            denoising_steps=config.steps,
            memory=config.memory + config.overlap,
            recent=config.overlap,
            asked_every=REFERENCE_STEP // FRAMES_PER_LATENT,
            fov=(2 * HALF_ANGLE, 2 * HALF_ANGLE),
            view_depth=FAR,
        )

    def at_depth(self, depth: int) -> Self:
        """With another number of blocks, of which the first have actions: as many of a hundred, rounded up."""
        actions = -(-depth * self.config.action_blocks // self.config.depth)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, depth=depth, action_blocks=actions))

    def module(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> nn.Module:
        """A `MatrixGameClip`; one of 8 bit has the other's weights, rounded."""
        with torch.device(device):
            clip = MatrixGameClip(dataclasses.replace(self.config, int8=False)).to(dtype)
        fill_random(clip, seed).eval().requires_grad_(False)
        return to_int8(clip) if self.config.int8 else clip

    def example_inputs(
        self, history: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict[str, Tensor | None]:
        """Arguments of `MatrixGameClip.forward`."""
        return example_inputs(self.config, history, device, dtype, seed, self.text_tokens)

    def camera_path(self, text: str) -> Trajectory:
        """The trajectory of a pose string."""
        return Trajectory.from_pose_string(text)

    def recorded_path(self, poses: Tensor, times: Tensor, frames: int) -> Trajectory:
        """Resampled in time and scaled to 0.1235 scene units a video frame, with the actions closest to it."""
        return recorded_trajectory(RecordedPath(poses, times), frames, MOVE_SPEED)

    def scene(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Scene:
        """A random first image and prompt."""
        return example_scene(self.config, device, dtype, seed, self.text_tokens)

    def rollout(
        self, call: Callable[..., Tensor], scene: Any, path: CameraPath, *, seed: int = 0
    ) -> Iterator[ChunkResult]:
        """Clip after clip; `path` is a `Trajectory`."""
        assert isinstance(path, Trajectory)
        return rollout(call, self.config, scene, path, seed=seed)

    def context_frames(self, path: CameraPath, first: int) -> Sequence[int]:
        """Frames that were seen from where the clip goes, and the latest, which it overlaps."""
        if first == 0:
            return []
        assert isinstance(path, Trajectory)
        end = video_frames(first + self.config.new_frames, True)
        chosen = remembered(self.config, camera_poses(path.video_extrinsics[None, :end])).tolist()
        return sorted({*chosen, *range(first - self.config.overlap, first)})

    def stages(self, module: nn.Module) -> Mapping[str, tuple[nn.Module, str]]:
        """Denoising alone: text is read in every step, and nothing is filled in before."""
        transformer = module.transformer
        assert isinstance(transformer, nn.Module)
        return {"denoise": (transformer, "forward")}

    def prompt_encoder(
        self, scene: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> PromptEncoder:
        """UMT5: XXL for the released size, a small one for others."""
        tokens, small = scene.text.shape[1], not self.needs_gpu
        encode, told = umt5_encoder(self.config.text_dim, tokens, device, dtype, seed, small=small)
        return PromptEncoder(lambda: dataclasses.replace(scene, text=encode()), told)

    @property
    def decoders(self) -> Sequence[str]:
        """Wan 2.2's decoder and the two that were pruned from it, by the names of the release."""
        return tuple(DECODER_WIDTHS)

    def video_decoder(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0, name: str = ""
    ) -> VideoDecoder:
        """Wan 2.2's VAE with random weights: as released for the released size, a small one for others."""
        width = DECODER_WIDTHS[name or self.decoders[0]]
        return wan_decoder(self.config.in_channels, device, dtype, seed, small=not self.needs_gpu, width=width)

    def __str__(self) -> str:
        shape = f"{self.depth} blocks, {self.config.steps} denoising steps, up to {self.config.memory} memory frames"
        return f"Matrix-Game, {shape}"


def _large(int8: bool) -> MatrixGame:
    config = dataclasses.replace(MatrixGameConfig.base_5b_720p(), int8=int8)
    return MatrixGame(config, text_tokens=119, needs_gpu=True)


FAMILY = ModelFamily(
    {
        "tiny": lambda: MatrixGame(MatrixGameConfig.tiny()),
        "tiny-int8": lambda: MatrixGame(dataclasses.replace(MatrixGameConfig.tiny(), int8=True)),
        "5b-720p-int8": lambda: _large(int8=True),
        "5b-720p": lambda: _large(int8=False),
    }
)
