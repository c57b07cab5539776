"""Run as a program: the kernel of mixed linears in Triton's CPU interpreter against float64; results as JSON.

The interpreter cannot multiply bfloat16: the numbers are the same, held in float32.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from mixed_cases import CASES, operands
from torch.nn import functional as F

from lightint_compile.kernels.portable.mixed_linear import linear_of_parts

errors = {}
for name, case in CASES.items():
    x, parts, weight, bias = operands(case)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    ours = torch.full((case.rows, case.columns), float("nan"))
    linear_of_parts([part.float() for part in parts], weight.float(), bias, ours)
    errors[name] = float((ours.double() - exact).norm() / exact.norm())
print(json.dumps(errors))
