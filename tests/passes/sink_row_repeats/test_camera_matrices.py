"""Camera matrices of every token, spelled as relative encodings spell them: lifted, multiplied, inverted."""

from __future__ import annotations

import torch
from differential import feeds_of, largest_difference, rewritten, run, trace
from torch import Tensor, nn

from lightint_compile.passes.ir.remarks import RemarkKind

PASS, FRAMES, PER_FRAME = "sink-row-repeats", 6, 16


def lifted(intrinsics: Tensor) -> Tensor:
    out = torch.zeros((*intrinsics.shape[:-2], 4, 4), dtype=intrinsics.dtype)
    out[..., :3, :3] = intrinsics
    out[..., 3, 3] = 1.0
    return out


def inverse_intrinsics(intrinsics: Tensor) -> Tensor:
    out = torch.zeros_like(intrinsics)
    out[..., 0, 0] = 1.0 / intrinsics[..., 0, 0]
    out[..., 1, 1] = 1.0 / intrinsics[..., 1, 1]
    out[..., 0, 2] = -intrinsics[..., 0, 2] / intrinsics[..., 0, 0]
    out[..., 2, 2] = 1.0
    return out


def inverse_pose(poses: Tensor) -> Tensor:
    rotation = poses[..., :3, :3].transpose(-1, -2)
    out = torch.zeros_like(poses)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = -torch.einsum("...ij,...j->...i", rotation, poses[..., :3, 3])
    out[..., 3, 3] = 1.0
    return out


class Encoded(nn.Module):
    """Queries and keys turned by the camera of their frame, which every token is given."""

    def forward(self, query: Tensor, key: Tensor, poses: Tensor, intrinsics: Tensor) -> Tensor:
        poses, intrinsics = (each.repeat_interleave(PER_FRAME, 1) for each in (poses, intrinsics))
        projection = torch.einsum("...ij,...jk->...ik", lifted(intrinsics), poses)
        inverse = torch.einsum("...ij,...jk->...ik", inverse_pose(poses), lifted(inverse_intrinsics(intrinsics)))
        query = self.turned(query, projection.transpose(-1, -2))
        key = self.turned(key, inverse)
        return nn.functional.scaled_dot_product_attention(query, key, key)

    def turned(self, features: Tensor, matrix: Tensor) -> Tensor:
        batch, heads, tokens, width = features.shape
        parts = features.reshape(batch, heads, tokens, -1, width // 4, 4)
        return torch.einsum("bcij,bncpkj->bncpki", matrix, parts).reshape(features.shape)


def test_matrices_are_computed_once_a_frame() -> None:
    module, make = Encoded(), torch.Generator().manual_seed(0)
    tokens = FRAMES * PER_FRAME
    inputs = {
        "query": torch.randn(2, 3, tokens, 8, generator=make, dtype=torch.float64),
        "key": torch.randn(2, 3, tokens, 8, generator=make, dtype=torch.float64),
        "poses": torch.randn(2, FRAMES, 4, 4, generator=make, dtype=torch.float64),
        "intrinsics": 1 + torch.rand(2, FRAMES, 3, 3, generator=make, dtype=torch.float64),
    }
    program = trace(module, inputs)
    copy, result = rewritten(program, PASS)
    sunk = [r for r in result.remarks if r.kind is RemarkKind.APPLIED and r.rule == "einsum"]
    assert len(sunk) == 3 and {r.args["rows_after"] for r in sunk} == {str(FRAMES)}
    assert not [r for r in result.remarks if r.kind is RemarkKind.MISSED]
    feeds = feeds_of(module, inputs)
    assert largest_difference(run(copy, feeds), run(program, feeds)) <= 1e-13
