"""HY-WorldPlay as a world model that the command line, the benchmarks and the demo can use."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lightint_compile.passes.ir.world_spec import WorldSpec

from ..camera_paths.pose_files import RecordedPath
from ..random_weights import fill_random
from ..text_encoders import byt5_encoder, qwen_encoder
from ..video_vaes import hunyuan_decoder
from ..world_model import CameraPath, ChunkResult, ModelFamily, PromptEncoder, VideoDecoder
from .chunk import WorldPlayChunk
from .config import WorldPlayConfig
from .context import HALF_AZIMUTH, HALF_ELEVATION, RADIUS, ContextSelector
from .examples import example_inputs, example_scene
from .pose_files import recorded_trajectory
from .rollout import Scene, rollout
from .trajectory import MOVE_SPEED, Trajectory


@dataclass(frozen=True)
class WorldPlay:
    """A size of HY-WorldPlay; see `WorldModel`.

    `text_tokens` is the length of an example prompt; at 480p a typical one has 119.
    """

    config: WorldPlayConfig
    example_history: int
    text_tokens: int = 12
    needs_gpu: bool = False

    roles: ClassVar[Mapping[str, str]] = {
        "noise": "latent",
        "history": "context",
        "extrinsics": "camera",
        "intrinsics": "intrinsics",
        "actions": "action",
        "text": "text",
        "glyphs": "text",
        "vision": "text",
    }
    frame_axes: ClassVar[Mapping[str, int]] = {"history": 2, "extrinsics": 1, "intrinsics": 1, "actions": 1}
    _arguments: ClassVar[Sequence[str]] = (
        *("noise", "history", "extrinsics", "intrinsics", "actions"),
        *("image", "text", "glyphs", "vision"),
    )

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.config.depth

    @property
    def spec(self) -> WorldSpec:
        """Clips are as long as chunks; views are those by which the context is retrieved."""
        config, angles = self.config, (2 * HALF_AZIMUTH, 2 * HALF_ELEVATION)
        return WorldSpec(
            chunk=config.chunk_frames,
            clip=config.chunk_frames,
            denoising_steps=config.steps,
            memory=config.memory,
            recent=config.recent,
            fov=(round(math.degrees(angles[0]), 6), round(math.degrees(angles[1]), 6)),
            view_depth=RADIUS,
        )

    def at_depth(self, depth: int) -> Self:
        """With another number of blocks."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, depth=depth))

    def module(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> nn.Module:
        """A `WorldPlayChunk`."""
        with torch.device(device):
            chunk = WorldPlayChunk(self.config).to(dtype)
        return fill_random(chunk, seed).eval().requires_grad_(False)

    def example_inputs(
        self, history: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict[str, Tensor | None]:
        """Arguments of `WorldPlayChunk.forward`."""
        made, _ = example_inputs(self.config, history, device, dtype, seed, self.text_tokens)
        return dict(zip(self._arguments, made, strict=True))

    def camera_path(self, text: str) -> Trajectory:
        """The trajectory of a pose string."""
        return Trajectory.from_pose_string(text)

    def recorded_path(self, poses: Tensor, times: Tensor, frames: int) -> Trajectory:
        """Resampled in time and scaled to 0.08 scene units a latent frame."""
        return recorded_trajectory(RecordedPath(poses, times), frames, MOVE_SPEED)

    def scene(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Scene:
        """A random first image and prompt."""
        return example_scene(self.config, device, dtype, seed, self.text_tokens)

    def rollout(
        self, call: Callable[..., Tensor], scene: Any, path: CameraPath, *, seed: int = 0
    ) -> Iterator[ChunkResult]:
        """Chunk after chunk; `path` is a `Trajectory`."""
        assert isinstance(path, Trajectory)
        return rollout(call, self.config, scene, path, seed=seed)

    def context_frames(self, path: CameraPath, first: int) -> Sequence[int]:
        """The first frames, the newest ones, and clips that the camera sees again."""
        cameras = path.extrinsics[None, : first + self.config.chunk_frames]
        frames: list[int] = ContextSelector(self.config)(cameras, first).tolist() if first else []
        return frames

    def stages(self, module: nn.Module) -> Mapping[str, tuple[nn.Module, str]]:
        """The three passes of the transformer."""
        transformer = module.transformer
        assert isinstance(transformer, nn.Module)
        methods = {"text": "text_cache", "prefill": "prefill", "denoise": "forward"}
        return {stage: (transformer, method) for stage, method in methods.items()}

    def prompt_encoder(
        self, scene: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> PromptEncoder:
        """Qwen2.5-VL's language model, and ByT5 for quoted text: as released for the released size, else small ones."""
        size, small = (device, dtype, seed), not self.needs_gpu
        encode, told = qwen_encoder(self.config.text_dim, scene.text.shape[1], *size, small=small)
        spell, spelt = byt5_encoder(self.config.glyph_dim, scene.glyphs.shape[1], *size, small=small)
        return PromptEncoder(lambda: dataclasses.replace(scene, text=encode(), glyphs=spell()), f"{told}; {spelt}")

    @property
    def decoders(self) -> Sequence[str]:
        """There is one."""
        return ("hunyuan-1.5",)

    def video_decoder(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0, name: str = ""
    ) -> VideoDecoder:
        """HunyuanVideo-1.5's VAE with random weights: as released for the released size, a small one for others."""
        return hunyuan_decoder(self.config.in_channels, device, dtype, seed, small=not self.needs_gpu)

    def __str__(self) -> str:
        shape = f"{self.depth} blocks, {self.config.steps} denoising steps, up to {self.config.memory} context frames"
        return f"WorldPlay, {shape}"


FAMILY = ModelFamily(
    {
        "tiny": lambda: WorldPlay(WorldPlayConfig.tiny(), example_history=8),
        "demo": lambda: WorldPlay(WorldPlayConfig.demo(), example_history=8),
        "8b-480p": lambda: WorldPlay(WorldPlayConfig.hy_8b_480p(), example_history=40, text_tokens=119, needs_gpu=True),
    }
)
