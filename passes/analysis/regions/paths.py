"""The module that nodes come from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch.fx as fx


def common_path(nodes: Sequence[fx.Node]) -> str:
    """The innermost module that all nodes with a module path are in, with the mark of its call."""
    stacks = [list(stack.values()) for node in nodes if (stack := node.meta.get("nn_module_stack"))]
    if not stacks:
        return ""
    plain = [str(stack[-1][0]).split("@")[0].split(".") for stack in stacks]
    common = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*plain, strict=False))]
    path = ".".join(common)
    marked = (str(entry) for stack in stacks for entry, _ in stack if str(entry).split("@")[0] == path)
    return next(marked, path)
