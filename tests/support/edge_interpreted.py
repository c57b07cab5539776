"""Run as a program: the copy of edge rows in Triton's CPU interpreter; the name of every case that is equal."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from edge_cases import CASES, pads_of, parts_of

from lightint_compile.kernels.edge_frames import empty, fill, joined_frames

for name, case in CASES.items():
    parts, pads = parts_of(case), pads_of(case)
    ours = empty(parts, pads).fill_(float("nan"))
    fill(ours, parts, pads)
    if torch.equal(ours, joined_frames(parts, pads)):
        print(name)
