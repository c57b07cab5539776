"""Every code base, and every pipeline, that the runs are made of."""

from __future__ import annotations

import causal_wan
import clips_with_memory
import frame_by_frame
import hunyuan
import pipelines
import whole_clip
from case import Case

MODELS: dict[str, Case] = {**hunyuan.CASES, **causal_wan.CASES, **whole_clip.CASES}
MODELS |= clips_with_memory.CASES | frame_by_frame.CASES
PIPELINES: dict[str, Case] = pipelines.CASES
CASES = MODELS | PIPELINES
