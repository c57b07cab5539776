"""The report of a dry run of the toy world under preset ``all``, made once a process: what several tests look at."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from torch._inductor import config as inductor_config
from toy_world import ToyWorld, there_and_back

import lightint_compile
from lightint_compile.pipeline_run import watching
from lightint_compile.reporting import Report
from lightint_compile.reporting.pass_texts import PassDiff

FRAMES = 24
DIFFED = "dead-tail"


@functools.cache
def explained() -> tuple[Report, PassDiff, Path]:
    """The report, what dead-tail changed, and the folder of texts that TORCH_COMPILE_DEBUG=1 leaves."""
    folder = Path(tempfile.mkdtemp(prefix="lightint_debug_"))
    inputs = (torch.randn(1, 4, 4, 4, 6), torch.randn(1, 4, FRAMES - 4, 4, 6), there_and_back(FRAMES))
    diff = PassDiff(DIFFED)
    dynamic = {"history": 2, "extrinsics": 1}
    files, texts = (
        torch._dynamo.config.patch(debug_dir_root=str(folder)),
        inductor_config.patch({"trace.enabled": True}),
    )
    with files, texts, torch.no_grad(), watching(diff):
        report = lightint_compile.explain(ToyWorld().eval(), *inputs, dynamic=dynamic, options={"preset": "all"})
    return report, diff, folder
