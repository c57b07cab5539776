"""Torch as tests want it, from its import on: nothing is measured that no test reads."""

from __future__ import annotations

import logging
import os

import torch
import torch._inductor.config

# pytest hands its handlers to loggers that do not propagate, and torch writes a trace for tlparse wherever its
# logger has a handler: a tenth of a batch of seeds went into it. Its own handler leaves at the first record, which
# must not reach the terminal: a test may read what is there.
_trace = logging.getLogger("torch.__trace")
_trace.debug("no trace is wanted")
_trace.propagate = True

# Dynamo measures how long the guards of every new graph take, behind a flush of the caches: 25 to 40 ms, a quarter of
# what a small graph takes to compile. No test reads it.
torch._dynamo.guards.profile_guard_manager = lambda *_: 0.0

# With an empty cache Inductor compiles small programs to see which vectors the compiler knows: 4 s in every process
# that a test starts with a cache of its own. What the processor has is taken as known, here and in those processes.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
torch._inductor.config.cpp.vec_isa_ok = True

# Nor is every graph a reason to look for garbage: 10 ms each.
torch._dynamo.config.run_gc_after_compile = False

# torch.library.opcheck imports torch.testing's internals, which forbid every later test to set a backend's flags.
torch.backends.disable_global_flags = lambda: None
