"""Ranks that share a program do the same in every call: whether collectives are recorded is a property of all of them.

NCCL asks that a collective is part of a CUDA graph on all ranks or on none. Whether a rank may play what it recorded
depends on what only it knows: where its weights lie, who watches, how much memory there is. So ranks ask one another,
on their hosts: once a call, and in front of every stretch whether all are to play it, to record it, or neither. A
stretch on which they differ runs call by call on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from lightint_compile.errors import RankError, told
from lightint_compile.passes.ir.ranks import process_group


class Consent:
    """What the ranks of a group say.

    Args:
        group: the name by which collectives find it.
    """

    def __init__(self, group: str) -> None:
        self._name = group
        self._host: dist.ProcessGroup | None = None

    def all_want(self, own: int) -> bool:
        """Whether all ranks have this number in mind.

        Raises:
            RankError: a rank does not answer.
        """
        highest, lowest = self._largest([own, -own])
        return highest == -lowest

    def any_says(self, own: Sequence[bool]) -> list[bool]:
        """For each question whether the answer of any rank is yes.

        Raises:
            RankError: a rank does not answer.
        """
        return [bool(answer) for answer in self._largest(list(map(int, own)))]

    def _largest(self, own: list[int]) -> list[int]:
        try:
            answers = torch.tensor(own, dtype=torch.int64)
            dist.all_reduce(answers, dist.ReduceOp.MAX, group=self._group())
        except RuntimeError as error:
            fix = "the error of the first rank that failed says more"
            raise RankError("a rank does not answer", why=told(error), fix=fix) from error
        return [int(answer) for answer in answers.tolist()]

    def _group(self) -> dist.ProcessGroup:
        """The same ranks, by their hosts; all of them make it in the same call."""
        if self._host is None:
            self._host = _on_hosts(process_group(self._name))
        return self._host


def _on_hosts(group: dist.ProcessGroup) -> dist.ProcessGroup:
    if "gloo" in dist.get_backend(group):
        return group
    ranks = dist.get_process_group_ranks(group)
    made = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    assert isinstance(made, dist.ProcessGroup), "this rank is one of them"
    return made
