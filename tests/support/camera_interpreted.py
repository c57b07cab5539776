"""Run as a program: the camera kernel in Triton's CPU interpreter against the specification; results as JSON."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from camera_cases import CASES, KEPT_CASES, inputs, kept_inputs

from lightint_compile.kernels.camera import camera_heads
from lightint_compile.kernels.camera_kept import camera_heads_kept
from lightint_compile.kernels.portable.camera import camera_heads as run
from lightint_compile.kernels.portable.camera import camera_heads_kept as run_kept

errors = {}
for name, case in CASES.items():
    given = inputs(case, torch.float32)
    errors[name] = float((run(*given) - camera_heads(*given)).abs().max())
for name, case in KEPT_CASES.items():
    given = kept_inputs(case, torch.float32)
    errors[name] = float((run_kept(*given) - camera_heads_kept(*given)).abs().max())
print(json.dumps(errors))
