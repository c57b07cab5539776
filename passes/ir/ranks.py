"""The processes that share a program: how many there are, which one this is, and what the collectives call them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
import torch.fx as fx

from lightint_compile.errors import OptionError

MARK = "ranks"
"""Where a graph module's meta says which ranks share its tokens."""

_EXAMPLE = "start the program with torchrun --nproc-per-node {0}, and call torch.distributed.init_process_group()"


@dataclass(frozen=True)
class Ranks:
    """The ranks of one group.

    Attributes:
        count: how many there are.
        rank: this process among them, from 0.
        group: the name by which functional collectives find the group.
    """

    count: int
    rank: int = 0
    group: str = "0"

    @classmethod
    def of(cls, gpus: int | None, mesh: str | None) -> Ranks | None:
        """The ranks that ``gpus=`` or ``mesh=`` asks for; ``None`` where neither does, or for one rank.

        Without a process group this is rank 0: a report shows what would be sharded, and nothing can run.

        Raises:
            OptionError: the group has another number of ranks, or there is no such group.
        """
        if mesh is not None:
            return cls._of_mesh(mesh)
        if gpus is None or gpus == 1:
            return None
        if not is_joined():
            return cls(gpus)
        world = dist.get_world_size()
        if world != gpus:
            why = f"the default process group has {world} rank{'s' if world > 1 else ''}"
            raise OptionError(f"gpus={gpus} cannot be had", where="options['gpus']", why=why, fix=f"gpus={world}")
        return cls(gpus, dist.get_rank(), _name_of(dist.group.WORLD))

    @classmethod
    def _of_mesh(cls, mesh: str) -> Ranks | None:
        count, _, name = mesh.partition("@")
        if int(count) == 1:
            return None
        if not is_joined():
            return cls(int(count), 0, name)
        try:
            group = process_group(name)
        except RuntimeError as error:
            fix = "make the DeviceMesh in this process"
            raise OptionError("the mesh is not here", where="options['mesh']", why=str(error), fix=fix) from error
        return cls(int(count), dist.get_rank(group), name)

    def check_joined(self) -> None:
        """Raise :class:`OptionError` unless there is a process group: what follows would wait for nobody."""
        if not is_joined():
            raise OptionError(
                f"{self.count} ranks were asked for, and this process is alone",
                where="options['gpus']",
                why="torch.distributed has no process group",
                fix=_EXAMPLE.format(self.count),
            )


def ranks_of(graph_module: fx.GraphModule) -> Ranks | None:
    """The ranks that share the tokens of a graph; ``None`` where each has all of them."""
    found: Ranks | None = graph_module.meta.get(MARK)
    return found


def group_of(graph_module: fx.GraphModule) -> str:
    """The process group of the ranks that share the tokens of a graph; empty where each has all of them."""
    ranks = ranks_of(graph_module)
    return "" if ranks is None else ranks.group


def is_joined() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def process_group(name: str) -> dist.ProcessGroup:
    """The process group of a name."""
    from torch.distributed import distributed_c10d

    found: dist.ProcessGroup = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
    return found


def mesh_text(mesh: object) -> str | None:
    """A one-dimensional ``DeviceMesh`` as ``ranks@group``, which compares and prints; ``None`` for anything else."""
    if getattr(mesh, "ndim", None) != 1:
        return None
    group = mesh.get_group()  # type: ignore[attr-defined]
    return f"{group.size()}@{_name_of(group)}"


def _name_of(group: object) -> str:
    return str(group.group_name)  # type: ignore[attr-defined]
