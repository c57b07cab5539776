"""How good a model is: rollouts in mazes that no training sees, against the rendered truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import matplotlib.image
import torch
from torch import Tensor

from lightint_compile.errors import InputError
from lightint_compile.models.camera_paths.poses import invert_rigid
from lightint_compile.models.maze.codec import MazeCodec
from lightint_compile.models.maze.config import MazeSize
from lightint_compile.models.maze.paths import MazePath, novel, protocol
from lightint_compile.models.maze.world import Maze
from lightint_compile.models.worldplay.context import ContextSelector
from lightint_compile.training.generation import generate
from lightint_compile.training.network import Network
from lightint_compile.training.sequences import Sequences, cameras_of, context_table, view_frames

FIRST_MAZE = 1 << 15
"""The seed of the first maze that models are judged in here."""

_MOST_TRIED = 8


@dataclass(frozen=True)
class Family:
    """Walks of one kind through mazes: the truth [n, F, 3, H, W], its latents and cameras, and what is seen again."""

    name: str
    truth: Tensor
    walks: Sequences
    again: slice

    def scores(self, codec: MazeCodec, latents: Tensor) -> dict[str, float]:
        """PSNR in dB against the truth, over all frames but the first chunk and over those that are seen again."""
        made = torch.stack([codec.decode_video(each[None])[0] for each in latents.float()])
        return {
            "psnr": psnr(made[:, 4:], self.truth[:, 4:]),
            "psnr_again": psnr(made[:, self.again], self.truth[:, self.again]),
        }


def psnr(made: Tensor, truth: Tensor) -> float:
    """The mean over walks of the peak signal-to-noise ratio of [n, F, 3, H, W] in [0, 1]."""
    errors = (made - truth).square().flatten(1).mean(1).clamp_min(1e-10)
    return float((-10.0 * errors.log10()).mean())


def families(
    size: MazeSize, codec: MazeCodec, selector: ContextSelector, frames: int, mazes: int, device: torch.device
) -> list[Family]:
    """A turn and back, a walk and back, and exploration, through `mazes` mazes each."""
    out = frames // 2
    kinds: dict[str, tuple[Callable[[Maze], MazePath], slice]] = {
        "turn": (lambda maze: protocol(maze, f"left-{out - 1},right-{frames - out}"), slice(out, frames)),
        "walk": (lambda maze: protocol(maze, f"w-{out - 1},s-{frames - out}"), slice(out, frames)),
        "novel": (lambda maze: novel(maze, frames), slice(4, frames)),
    }
    found = []
    for name, (kind, again) in kinds.items():
        chosen, paths = zip(*_paths(kind, mazes), strict=True)
        maze = Maze.from_seeds(list(chosen), device)
        poses = torch.stack([invert_rigid(path.placed) for path in paths]).to(device)
        cameras = cameras_of(poses, device)
        truth = view_frames(maze, poses, size.pixels)
        with torch.no_grad():
            latents = torch.stack([codec.encode(each) for each in truth]).transpose(1, 2)
        walks = Sequences(latents, cameras, context_table(selector, cameras.extrinsics))
        found.append(Family(name, truth, walks, again))
    return found


def _paths(kind: Callable[[Maze], MazePath], mazes: int) -> Iterator[tuple[int, MazePath]]:
    """Seeds and paths of the first mazes in which the kind fits."""
    made = 0
    for seed in range(FIRST_MAZE, FIRST_MAZE + _MOST_TRIED * mazes):
        try:
            yield seed, kind(Maze.from_seed(seed))
        except InputError:
            continue
        made += 1
        if made == mazes:
            return


def rolled(network: Network, family: Family, forget: bool = False, steps: int | None = None) -> Tensor:
    """Latents [n, C, F, h, w] of free rollouts along the family's walks, from seed 0."""
    walks = family.walks
    noise = torch.randn(walks.latents.shape, generator=torch.Generator().manual_seed(0)).to(walks.latents.device)
    image = walks.latents[:, :, 0].float()
    return generate(network, image, walks.cameras, walks.context, noise, forget=forget, steps=steps)


def judge(network: Network, codec: MazeCodec, found: list[Family]) -> dict[str, dict[str, float]]:
    """Scores by family: the model, without retrieved memory, the first frame held, and the codec alone."""
    table: dict[str, dict[str, float]] = {}
    for family in found:
        held = family.walks.latents[:, :, :1].expand_as(family.walks.latents)
        kinds = {
            "model": rolled(network, family),
            "forgetful": rolled(network, family, forget=True),
            "first frame": held,
            "codec": family.walks.latents,
        }
        for kind, latents in kinds.items():
            for score, value in family.scores(codec, latents).items():
                table.setdefault(family.name, {})[f"{kind} {score}"] = round(value, 3)
    return table


def strip(path: str, codec: MazeCodec, found: list[Family], rollouts: dict[str, list[Tensor]], walks: int = 2) -> None:
    """Write a picture: of some walks of every family a row of the truth, and below it a row for each of `rollouts`."""
    rows = []
    for number, family in enumerate(found):
        shown = torch.linspace(0, family.truth.shape[1] - 1, 10).long()
        for walk in range(min(walks, len(family.truth))):
            rows.append(_row(family.truth[walk, shown]))
            for each in rollouts.values():
                rows.append(_row(codec.decode_video(each[number][walk : walk + 1].float())[0, shown]))
    matplotlib.image.imsave(path, torch.cat(rows, dim=1).permute(1, 2, 0).clamp(0, 1).cpu().numpy())


def _row(frames: Tensor) -> Tensor:
    return torch.cat(list(frames.cpu()), dim=-1)
