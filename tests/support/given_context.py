"""World models whose context arrives as an input, chosen by the caller: modules that trace in a second or two."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from toy_world import Block

CHUNK = 4


class Given(nn.Module):
    """Context latents [B, 4, n, h, w], cameras and actions of context and chunk, a validity mask of the context."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv3d(4, width, (1, 2, 2), (1, 2, 2))
        self.pose, self.act = nn.Linear(16, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 16)

    def forward(self, latents: Tensor, context: Tensor, cameras: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        return self.velocity(latents, context, cameras, actions, valid)

    def velocity(self, latents, context, cameras, actions, valid):
        frames = torch.cat([context * valid[:, None, :, None, None], latents], 2)
        embedded = self.embed(frames)
        per_frame = embedded.shape[3] * embedded.shape[4]
        told = self.pose(cameras.flatten(2)) + self.act(actions[..., None])
        tokens = embedded.flatten(2).transpose(1, 2) + told.repeat_interleave(per_frame, 1)
        for block in self.blocks:
            tokens, _ = block(tokens, torch.zeros(1, 1, 1), None)
        batch, _, chunk, height, width = latents.shape
        patches = self.head(tokens[:, -chunk * per_frame :]).reshape(batch, chunk, height // 2, width // 2, 4, 2, 2)
        return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(latents.shape)

    @staticmethod
    def inputs(frames: int, seed: int = 0, batch: int = 1) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {
            "latents": torch.randn(batch, 4, CHUNK, 4, 6, generator=draw),
            "context": torch.randn(batch, 4, frames, 4, 6, generator=draw),
            "cameras": torch.eye(4).repeat(batch, frames + CHUNK, 1, 1),
            "actions": torch.randn(batch, frames + CHUNK, generator=draw),
            "valid": torch.ones(batch, frames),
        }


class TwoCameras(Given):
    """The same with the cameras of context and chunk in two inputs, and actions of the chunk alone."""

    def forward(self, latents, context, context_cameras, cameras, valid):
        actions = torch.zeros(1, context.shape[2] + CHUNK)
        return self.velocity(latents, context, torch.cat([context_cameras, cameras], 1), actions, valid)


class PerFrameResult(Given):
    """Also returns something for every context frame."""

    def forward(self, latents, context, cameras, actions, valid):
        return self.velocity(latents, context, cameras, actions, valid), context.mean((1, 3, 4))


class WithoutCameras(Given):
    def forward(self, latents, context, actions, valid):
        cameras = torch.zeros(1, context.shape[2] + CHUNK, 4, 4)
        return self.velocity(latents, context, cameras, actions, valid)


class CamerasApart(Given):
    """Reads the cameras through a mean: nothing in the graph relates their number to the context's."""

    def forward(self, latents, context, cameras, valid):
        pooled = cameras.mean(1, keepdim=True).expand(-1, context.shape[2] + CHUNK, -1, -1)
        return self.velocity(latents, context, pooled, torch.zeros(1, context.shape[2] + CHUNK), valid)


class FramePack(nn.Module):
    """In the manner of diffusers' FramePack transformer: clean latents and their indices beside the hidden states."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        from diffusers.models.attention import FeedForward
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        self.x_embedder = nn.Conv3d(4, width, (1, 2, 2), (1, 2, 2))
        self.clean_x_embedder = nn.Conv3d(4, width, (1, 2, 2), (1, 2, 2))
        self.time_proj, self.time_embed = Timesteps(16, True, 0), TimestepEmbedding(16, width)
        self.camera_proj, self.heads = nn.Linear(16, width), heads
        self.norm, self.to_qkv, self.ff = nn.LayerNorm(width), nn.Linear(width, 3 * width), FeedForward(width, mult=2)
        self.proj_out = nn.Linear(width, 16)

    def forward(
        self, hidden_states, timestep, latents_clean, indices_latents_clean, viewmats_clean, viewmats, return_dict=True
    ):
        tokens = self.tokens(self.x_embedder(hidden_states), viewmats)
        clean = self.tokens(self.clean_x_embedder(latents_clean), viewmats_clean)
        per_frame = clean.shape[1] // latents_clean.shape[2]
        ages = torch.cos(indices_latents_clean.to(clean.dtype)).repeat_interleave(per_frame, 1)[..., None]
        both = torch.cat([clean + ages, tokens], 1) + self.time_embed(self.time_proj(timestep))[:, None]
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(self.norm(both)).chunk(3, -1)
        )
        both = both + scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2, 3)
        made = self.proj_out((both + self.ff(both))[:, -tokens.shape[1] :])
        batch, _, frames, height, width = hidden_states.shape
        patches = made.reshape(batch, frames, height // 2, width // 2, 4, 2, 2)
        sample = patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(hidden_states.shape)
        return {"sample": sample} if return_dict else (sample,)

    def tokens(self, embedded: Tensor, viewmats: Tensor) -> Tensor:
        per_frame = embedded.shape[3] * embedded.shape[4]
        return embedded.flatten(2).transpose(1, 2) + self.camera_proj(viewmats.flatten(2)).repeat_interleave(
            per_frame, 1
        )

    @staticmethod
    def inputs(frames: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {
            "hidden_states": torch.randn(1, 4, CHUNK, 4, 6, generator=draw),
            "timestep": torch.tensor([500.0]),
            "latents_clean": torch.randn(1, 4, frames, 4, 6, generator=draw),
            "indices_latents_clean": torch.arange(frames)[None],
            "viewmats_clean": torch.eye(4).repeat(1, frames, 1, 1),
            "viewmats": torch.eye(4).repeat(1, CHUNK, 1, 1),
        }
