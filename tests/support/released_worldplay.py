"""HY-WorldPlay's released packages in a process of its own: what its launcher would set up."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

TRANSFORMER = "hyvideo.models.transformers.worldplay_1_5_transformer"


def transformer_code(root: Path, *, compiled: bool = False) -> Any:
    """The transformer's module from a checkout, for one device; ``compiled`` is its own flag for ``torch.compile``."""
    sys.path.insert(0, str(root))
    parallel = importlib.import_module("hyvideo.commons.parallel_states")
    alone = object.__new__(parallel.ParallelDims)  # its constructor makes a mesh of GPUs
    alone.sp = alone.world_size = 1
    setattr(parallel, "__parallel_dims", alone)
    flags = {"use_sageattn": False, "use_fp8_gemm": False, "use_vae_parallel": False, "enable_torch_compile": compiled}
    words = {"sage_blocks_range": "0-53", "include_patterns": "double_blocks", "quant_type": "fp8-per-block"}
    state = importlib.import_module("hyvideo.commons.infer_state")
    state.initialize_infer_state(argparse.Namespace(**flags, **words))
    return importlib.import_module(TRANSFORMER)
