"""The parts of ``lightint bench all``: what each runs on a GPU at full size and on a CPU at a small one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lightint_compile.errors import OptionError, did_you_mean


class Kind(StrEnum):
    """What a part's JSON file holds, by the command that writes it."""

    KERNELS = "kernels"
    ROLLOUT = "rollout"
    COMPILE = "compile"
    CHECKS = "checks"
    FLOPS = "flops"
    EVALUATION = "evaluation"


class Scale(StrEnum):
    """How much is measured.

    ``CUDA``: everything at full size, which takes hours. ``BRIEF``: on a GPU too, at full widths with few blocks
    (times of all of them are read off a line) and short rollouts. ``CPU``: small sizes.
    """

    CUDA = "cuda"
    BRIEF = "brief"
    CPU = "cpu"


@dataclass(frozen=True)
class Command:
    """Arguments of ``lightint``, and the minutes after which they are stopped."""

    arguments: tuple[str, ...]
    minutes: float


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        title: its heading on the page.
        says: what its figures are, in a sentence or two.
        commands: by scale: ``cuda`` at full size, ``brief`` on a GPU in minutes, ``cpu``.
        files: options that name a file of the part, and the suffix of that file.
    """

    name: str
    kind: Kind
    title: str
    says: str
    commands: Mapping[Scale, Command]
    files: Mapping[str, str] = field(default_factory=lambda: {"--json": ".json"})


def _repeated(option: str, values: Sequence[object]) -> tuple[str, ...]:
    return tuple(text for value in values for text in (option, str(value)))


_RANDOM = "Weights are random: these are times, and say nothing of quality."
_BRIEF = _repeated("--variant", ("eager", "exact", "all:drift=1e9"))
_LINE = (
    *_repeated("--variant", ("eager", "inductor", "exact", "published", "all:drift=1e9")),
    *("--depth", "2", "--depth", "6", "--repeats", "1"),
)
_FLOPS = ("bench", "flops", "--latents", "16", *_repeated("--variant", ("off", "exact", "all")))

PARTS: tuple[Part, ...] = (
    Part(
        "kernels",
        Kind.KERNELS,
        "Attention operators",
        "Sparse attention against dense attention of the same sizes, on random tensors.",
        {
            Scale.CUDA: Command(("bench", "kernels"), 40),
            Scale.BRIEF: Command(
                (
                    *("bench", "kernels", "--table", "sites", "--table", "sweep"),
                    *_repeated("--length", (4096, 16384, 65536)),
                    *_repeated("--density", (0.1, 0.3, 1.0)),
                    *("--seconds", "0.1"),
                ),
                5,
            ),
            Scale.CPU: Command(
                (
                    *("bench", "kernels", "--table", "sites", "--table", "sweep"),
                    *_repeated("--length", (1024, 4096)),
                    *_repeated("--density", (0.1, 0.3, 0.5, 1.0)),
                    *("--seconds", "0.1"),
                ),
                5,
            ),
        },
    ),
    Part(
        "worldplay",
        Kind.ROLLOUT,
        "A rollout of WorldPlay",
        _RANDOM,
        {
            Scale.CUDA: Command(("bench", "worldplay:8b-480p"), 180),
            Scale.BRIEF: Command(("bench", "worldplay:8b-480p", "--chunks", "8", *_LINE), 12),
            Scale.CPU: Command(("bench", "worldplay:tiny", "--chunks", "6", "--depth", "2", *_BRIEF), 10),
        },
    ),
    Part(
        "matrix-game",
        Kind.ROLLOUT,
        "A rollout of Matrix-Game",
        _RANDOM,
        {
            Scale.CUDA: Command(("bench", "matrix-game:5b-720p", "--chunks", "8", "--at-once", "4"), 180),
            Scale.BRIEF: Command(("bench", "matrix-game:5b-720p", "--chunks", "4", *_LINE), 12),
            Scale.CPU: Command(("bench", "matrix-game:tiny", "--chunks", "4", "--depth", "2", *_BRIEF), 10),
        },
    ),
    Part(
        "flops",
        Kind.FLOPS,
        "FLOPs of a rollout",
        "Counted on the rewritten graphs at full size, not measured: PFLOP as attention / linear / modulation.",
        {
            Scale.CUDA: Command(("bench", "flops"), 60),
            Scale.BRIEF: Command(_FLOPS, 5),
            Scale.CPU: Command(_FLOPS, 5),
        },
    ),
    Part(
        "checks",
        Kind.CHECKS,
        "Checks of kept results",
        "What it takes to tell whether the sources of kept results hold what they held.",
        {
            Scale.CUDA: Command(("bench", "checks"), 20),
            Scale.BRIEF: Command(("bench", "checks"), 5),
            Scale.CPU: Command(("bench", "checks"), 5),
        },
    ),
    Part(
        "compile",
        Kind.COMPILE,
        "Compiling a chunk",
        "Seconds of first calls in fresh processes with caches of their own, on the host's processor.",
        {
            Scale.CUDA: Command(("bench", "compile"), 60),
            Scale.BRIEF: Command(("bench", "compile", "--depth", "4", "--inductor-up-to", "0"), 5),
            Scale.CPU: Command(("bench", "compile", "--depth", "1", "--inductor-up-to", "0"), 10),
        },
    ),
    Part(
        "evaluation",
        Kind.EVALUATION,
        "The maze's model against truth",
        "Trained weights in worlds whose every view can be rendered: quality, and time of the same rollouts.",
        {
            Scale.CUDA: Command(("evaluate", "--variants", "eager,no-memory,other-dtype,published,all,peers"), 360),
            Scale.BRIEF: Command(
                (
                    *("evaluate", "--mazes", "2", "--latents", "32"),
                    *("--variants", "eager,no-memory,published,all,teacache"),
                ),
                10,
            ),
            Scale.CPU: Command(
                (
                    *("evaluate", "--mazes", "1", "--latents", "16", "--families", "protocol"),
                    *("--variants", "eager,no-memory,published,all,teacache"),
                ),
                15,
            ),
        },
        {"--json": ".json", "--plot": ".png", "--markdown": ".md"},
    ),
)
"""In the order in which they run."""

APART: Mapping[str, str] = {
    "bench ranks": "needs `torchrun` and several GPUs",
    "bench FAMILY:SIZE --end-to-end": "decodes as well, with weights of a decoder that are random too",
    "tests/benchmarks": "pytest-benchmark runs it: `make bench-tests`",
}
"""Measurements that are no part, and why."""


PAGE = "measurements.md"
"""The file that all parts are shown in."""


def part_names() -> list[str]:
    """The names of all parts."""
    return [part.name for part in PARTS]


def chosen(names: Sequence[str]) -> tuple[Part, ...]:
    """The parts of these names in the order in which they run; all of them without names.

    Raises:
        OptionError: there is no such part.
    """
    known = part_names()
    for name in names:
        if name not in known:
            raise OptionError(f"there is no part {name!r}", where="--part", fix=did_you_mean(name, known))
    return tuple(part for part in PARTS if not names or part.name in names)
