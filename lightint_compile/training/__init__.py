"""Training of the maze's world model: codec, flow matching, distillation to four steps, and the files at the end."""

from __future__ import annotations

from pathlib import Path

import torch

from lightint_compile.models.devices import checked_device
from lightint_compile.models.maze.config import SIZES as SIZES
from lightint_compile.models.maze.config import MazeSize
from lightint_compile.training.artifact import put_over as put_over
from lightint_compile.training.clock import Session
from lightint_compile.training.logbook import Logbook
from lightint_compile.training.plan import Plan as Plan
from lightint_compile.training.ranks import Ranks
from lightint_compile.training.run import Training
from lightint_compile.training.state import State


def train(
    size: MazeSize,
    plan: Plan,
    out: Path,
    *,
    device: str | None = None,
    start: Path | None = None,
    resume: bool = False,
    session_minutes: float | None = None,
    compiled: bool | None = None,
) -> bool:
    """Train a size by a plan, into the folder `out`; whether the training is done.

    Args:
        device: "cpu" or "cuda"; by default CUDA where it is.
        start: folder of the weights to begin with, as a training writes them; drawn from the seed unless given.
        resume: take up the checkpoint in `out`, which has what it began with.
        session_minutes: write everything down after so long and return, to be resumed.
        compiled: compile the blocks; by default on CUDA.

    Raises:
        DeviceError: the device is not there.
        CheckpointError: there is nothing to resume, or it is of another size or seed; or nothing to begin with, or
            that has other widths.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    ranks = Ranks.join(checked_device(chosen).type)
    session = Session(None if session_minutes is None else 60.0 * session_minutes)
    try:
        state = State(size, plan, ranks.device)
        if resume:
            state.load(out)
            if not ranks.is_first:
                state.own = None  # the file has the first process's, of other walks; this one makes its own anew
        else:
            if start is not None:
                state.begin_with(start)
            for module in state.modules().values():
                ranks.same(module)
        book = Logbook(out if ranks.is_first else None)
        compiling = ranks.device.type == "cuda" if compiled is None else compiled
        return Training(state, ranks, book, session, out, compiling).run()
    finally:
        ranks.leave()
