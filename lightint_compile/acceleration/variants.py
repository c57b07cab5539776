"""How many variants of one function torch compiles before it gives up and runs it eagerly.

A rollout loop calls its transformer in many ways: with text, to fill caches, with and without context, with sizes that
change. Torch's limit of 8 is for functions that recompile without end.
"""

from __future__ import annotations

import torch._dynamo

from lightint_compile.torch_compat import CallSetting

MOST = 32
"""Variants of one function in calls of what is accelerated."""

MANY_VARIANTS = CallSetting(torch._dynamo.config, "recompile_limit", lambda limit: max(limit, MOST))
"""Lets torch compile so many; a user's own limit stays where it is higher."""
