"""The decision of a chunk as a program of its own, for hosts that have no Python: the adaptive rules in tensors.

It computes what :class:`~lightint_compile.runtime.rules.AdaptiveRules` decide on what the runtime reads: overlap of
views, hysteresis, the recent window by the latents' change, and the remembered clip that covers most of what is coming.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightint_compile.errors import ExportError
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime.drift import latent_dynamics
from lightint_compile.runtime.rules import AdaptiveRules, rules_of
from lightint_compile.runtime.view_overlap import SAME_CENTRE, AngularView, inverse_rigid


class Decide(nn.Module):
    """``decide(extrinsics, history, novel_before)`` gives ``context_frames``, ``reuse``, ``novel`` and ``overlap``.

    ``extrinsics`` [F + chunk, 4, 4] are rigid world-to-camera in float64, the coming chunk's last; ``history``
    [B, C, F, h, w] are the latents so far, at least a clip of them; ``novel_before`` is what the chunk before gave,
    true at the start. ``context_frames`` are int64 and ascending; ``reuse`` says that interior steps may be reused.

    Args:
        policy: of the program that is decided for. Cameras have the field of view that it says.

    Raises:
        ExportError: a policy with other rules, or without context frames.
    """

    points: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        rules = rules_of(policy)
        view = rules.camera_view
        plain = (
            policy.first_chunk is None and isinstance(rules, AdaptiveRules) and rules.adapt_context and rules.clips == 1
        )
        if not plain or not isinstance(view, AngularView) or policy.given or policy.outside:
            why = f"rules={policy.rules}, of a kind that only the runtime has"
            raise ExportError("the decision has no form as a program", why=why, fix="decide in the caller")
        assert isinstance(rules, AdaptiveRules)
        self.rules, self.view = rules, view
        self.register_buffer("points", view.points.mT.float().contiguous())

    def forward(self, extrinsics: Tensor, history: Tensor, novel_before: Tensor) -> dict[str, Tensor]:
        """See the class."""
        rules, frames = self.rules, history.shape[2]
        first = frames % rules.chunk + rules.clip * torch.arange(frames // rules.clip, device=extrinsics.device)
        known = (first > frames % rules.chunk) & (first < frames - rules.shortest)
        probes = (first[:, None] + torch.tensor(rules.clip_probes, device=first.device)).clamp(max=frames - 1)
        pose = extrinsics[frames - 1 :, None] @ inverse_rigid(extrinsics[probes.flatten()])[None]
        pose = pose.unflatten(1, (-1, len(rules.clip_probes)))
        seen = self._covers(pose[1:])
        overlap = self._overlap(pose[1:], seen, known).mean((0, 2))
        now = self._overlap(pose[:1], self._covers(pose[:1]), known).mean((0, 2))
        old = first < frames - rules.longest
        places = known & (old | (overlap > now + 1e-6))
        best = torch.where(places, overlap, 0.0).amax(0)
        novel = best < torch.where(novel_before, rules.enter, rules.leave)
        context = self._context(frames, first, places & ~novel, seen.any(2), latent_dynamics(history))
        return {"context_frames": context, "reuse": ~novel, "novel": novel, "overlap": best}

    def _context(self, frames: int, first: Tensor, places: Tensor, seen: Tensor, dynamics: Tensor) -> Tensor:
        rules = self.rules
        share = (dynamics.double() / rules.lively - 1.0).clamp(0.0, 1.0)
        window = rules.shortest + rules.clip * (share * (rules.longest - rules.shortest) / rules.clip).round().long()
        places = places & (first < frames - window)
        number = torch.arange(first.shape[0], device=first.device)
        gain = torch.where(places, seen.sum((0, 2)) + 1, 0) * (first.shape[0] + 1) - number
        start = torch.where(places.any(), first[gain.argmax(0)], 0)
        frame = torch.arange(frames, device=first.device)
        recent = (frame < rules.clip) | (frame >= frames - window)
        chosen = recent | ((frame >= start) & (frame < start + rules.clip)) | (frames <= rules.clip + window)
        return chosen.nonzero().flatten()

    def _overlap(self, pose: Tensor, seen: Tensor, known: Tensor) -> Tensor:
        """[Q, clips, probes]: in closed form where all cameras of known clips share a centre, else by points."""
        apart = torch.linalg.vector_norm(pose[..., :3, 3], dim=-1) >= SAME_CENTRE * self.view.radius
        return torch.where((apart & known[:, None]).any(), seen.float().mean(-1), self._turned(pose))

    def _turned(self, pose: Tensor) -> Tensor:
        """As :class:`AngularView` has it: shared azimuth times shared sine of elevation."""
        yaw, pitch = _direction(pose)
        half_azimuth, half_elevation = self._half
        azimuth = (2 * half_azimuth - yaw.abs()).clamp(min=0) / (2 * half_azimuth)
        top, bottom = (
            (pitch + half_elevation).clamp(max=half_elevation),
            (pitch - half_elevation).clamp(min=-half_elevation),
        )
        return azimuth * (top.sin() - bottom.sin()).clamp(min=0) / (2 * math.sin(half_elevation))

    @property
    def _half(self) -> tuple[float, float]:
        return math.radians(self.view.horizontal / 2), math.radians(self.view.vertical / 2)

    def _covers(self, pose: Tensor) -> Tensor:
        """Which points each camera sees: bool [Q, clips, probes, points]; see :meth:`AngularView.covers`."""
        half_azimuth, half_elevation = self._half
        yaw, pitch = (angle[..., None] for angle in _direction(pose))
        top, bottom = ((pitch + side * half_elevation).clamp(-math.pi / 2, math.pi / 2) for side in (1, -1))
        x, y, z = (self.points[axis] - pose[..., axis, 3, None].float() for axis in range(3))
        flat, height = x * x + z * z, y * y.abs()
        below = height * top.cos().square() < flat * top.sin() * top.sin().abs()
        above = height * bottom.cos().square() > flat * bottom.sin() * bottom.sin().abs()
        ahead, aside = x * yaw.sin() + z * yaw.cos(), x * yaw.cos() - z * yaw.sin()
        near = flat + height.abs() <= self.view.radius**2
        return near & below & above & (aside.abs() < ahead * math.tan(half_azimuth))


def _direction(pose: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth and elevation of cameras, in single precision: onnxruntime has no other arc tangent."""
    x, y, z = pose[..., :3, 2].float().unbind(-1)
    return torch.atan2(x, z), torch.atan2(y, (x * x + z * z).sqrt())


def paths(policy: Policy, frames: int) -> list[Tensor]:
    """Cameras of a history of ``frames`` and a chunk: one that turns, and one that walks and comes back."""
    count = frames + policy.chunk
    number = torch.arange(count, dtype=torch.float64)
    turns = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    angle = torch.deg2rad(torch.minimum(number, count - number) * 8.0)
    turns[:, 0, 0] = turns[:, 2, 2] = angle.cos()
    turns[:, 0, 2], turns[:, 2, 0] = -angle.sin(), angle.sin()
    walks = turns.clone()
    walks[:, 2, 3] = -0.08 * torch.minimum(number, count - number)
    return [turns, walks]
