"""Rules of other accelerators, written again from what they publish, on the uncompiled model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PEERS: Mapping[str, Any] = {}
"""Rules by the name of their variant."""
