"""The codec: a small convolutional autoencoder, frame by frame, 8 x 8 pixels to one latent pixel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 8
"""Pixels along a side of a latent pixel."""


@dataclass(frozen=True)
class CodecConfig:
    """Channels of the latents, and of the feature maps at 1/2, 1/4 and 1/8 of the frame's size."""

    latent: int = 8
    widths: tuple[int, int, int] = (32, 64, 128)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around SiLU, added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, features: Tensor) -> Tensor:
        """features [B, width, h, w] -> the same shape."""
        return features + self.conv2(F.silu(self.conv1(F.silu(self.norm(features)))))


class MazeCodec(nn.Module):
    """Frames [B, 3, H, W] in [0, 1] to latents [B, latent, H/8, W/8] of unit variance, and back.

    The normalisation is without weights, by batch statistics while training and by running ones afterwards.
    """

    def __init__(self, config: CodecConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CodecConfig()
        first, second, third = config.widths
        self.down = nn.Sequential(
            nn.Conv2d(12, first, 3, padding=1),
            ResidualBlock(first),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            ResidualBlock(second),
            nn.Conv2d(second, third, 4, stride=2, padding=1),
            ResidualBlock(third),
            ResidualBlock(third),
            nn.Conv2d(third, config.latent, 1),
        )
        self.normal = nn.BatchNorm2d(config.latent, affine=False, momentum=0.01)
        self.up = nn.Sequential(
            nn.Conv2d(config.latent, third, 3, padding=1),
            ResidualBlock(third),
            ResidualBlock(third),
            nn.Conv2d(third, 4 * second, 1),
            nn.PixelShuffle(2),
            ResidualBlock(second),
            ResidualBlock(second),
            nn.Conv2d(second, 4 * first, 1),
            nn.PixelShuffle(2),
            ResidualBlock(first),
            nn.Conv2d(first, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def encode(self, frames: Tensor) -> Tensor:
        """Latents of frames; any number of axes in front of the last three."""
        lead = frames.shape[:-3]
        pixels = F.pixel_unshuffle(frames.reshape(-1, *frames.shape[-3:]) * 2.0 - 1.0, 2)
        return self.normal(self.down(pixels)).unflatten(0, lead)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames of latents, not clamped while training; any number of axes in front of the last three."""
        lead = latents.shape[:-3]
        pixels = self.up(latents.reshape(-1, *latents.shape[-3:])) * 0.5 + 0.5
        return (pixels if self.training else pixels.clamp(0.0, 1.0)).unflatten(0, lead)

    def decode_video(self, latents: Tensor) -> Tensor:
        """Frames [B, F, 3, H, W] of latents as the model gives them, [B, C, F, h, w]."""
        return self.decode(latents.transpose(1, 2))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames through the latents and back."""
        return self.decode(self.encode(frames))


class MazeVideo(nn.Module):
    """The codec as a decoder of chunks: a latent frame needs no other, so there is no state."""

    def __init__(self, codec: MazeCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, latents: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Latents [B, C, F, h, w] to frames [B, 3, F, H, W] in [-1, 1]."""
        return self.codec.decode_video(latents).transpose(1, 2) * 2.0 - 1.0, state
