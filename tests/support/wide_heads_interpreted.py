"""Run as a program: attention by products in Triton's CPU interpreter against float64; results as JSON.

The interpreter cannot multiply bfloat16: the numbers are float16. A product with a stated dtype is one of GPUs alone:
here it is made of float32 operands.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from wide_cases import CASES, exact, mask_of, operands

from lightint_compile.kernels import wide_heads
from lightint_compile.kernels.portable import row_weights

product = torch.bmm


def bmm(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
    """A product in float32, as on a GPU."""
    found = product(left.float(), right.float())
    return found if out is None else out.copy_(found)


torch.bmm = bmm
row_weights.STEP = 64
wide_heads.SCORES = 2000
errors = {}
for name, case in CASES.items():
    given, mask = operands(case, torch.float16), mask_of(case, torch.float16)
    ours = wide_heads.by_products(*given, mask, case.scale)
    wanted = exact(*given, mask, case.scale)
    errors[name] = float((ours.double() - wanted).abs().max() / wanted.abs().max())
print(json.dumps(errors))
