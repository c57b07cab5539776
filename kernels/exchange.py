"""``lightint::exchange_rows``: every rank of a group sends each other one a row, by copies where GPUs reach each other.

It starts an exchange, and ``_c10d_functional::wait_tensor`` of what it gives waits for it, as for torch's functional
collectives. NCCL moves data by kernels, which take multiprocessors from whatever they are to be hidden behind; copy
engines take none. :mod:`.exchange_copies` is the way by copies. Where that cannot be had, all ranks of a group take
``all_to_all_single``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from lightint_compile.errors import InputError

from .checks import no_gradient

SCHEMA = "exchange_rows(Tensor rows, str group) -> Tensor"

_library = Library("lightint", "FRAGMENT")


def exchange_rows(rows: Tensor, group: str) -> Tensor:
    """The start of an exchange in which row ``r`` goes to rank ``r``.

    Every rank of the group makes the same exchanges in the same order, of rows of the same size and dtype.

    Args:
        rows: ``[ranks, ...]``, contiguous, of any dtype. It may be written to once this returns and the caller is
            not compiled code; that leaves it alone until the result was waited for.
        group: the name of a process group.

    Returns:
        ``[ranks, ...]``: row ``r`` is what rank ``r`` sent to this one, once ``wait_tensor`` of the result is through.

    Raises:
        InputError: rows that are not contiguous or not one a rank, or a gradient that is asked for.
        StateError: a CUDA graph is being recorded, and no exchange of this size was made before.
    """
    return torch.ops.lightint.exchange_rows(rows, group)


def _exchanged(rows: Tensor, group: str) -> Tensor:
    from torch.distributed import distributed_c10d

    members: Any = distributed_c10d._resolve_process_group(group)  # type: ignore[attr-defined, arg-type]
    count = members.size()
    _check(rows)
    if rows.shape[0] != count:
        raise InputError("there is not one row a rank", where="exchange_rows", why=f"{count} ranks, {rows.shape[0]}")
    if rows.is_cuda and count > 1 and rows.numel():
        from .exchange_copies import lane_for

        lane = lane_for(members, rows)
        if lane is not None:
            return lane.start(rows)
    return _collective(rows, count, group)


def _collective(rows: Tensor, count: int, group: str) -> Tensor:
    """The same by the backend of the group."""
    import torch.distributed._functional_collectives  # registers the operator

    splits = [1] * count
    found: Tensor = torch.ops._c10d_functional.all_to_all_single(rows, splits, splits, group)
    return found


def _check(rows: Tensor) -> None:
    if rows.dim() == 0 or not rows.is_contiguous():
        why = f"sizes {tuple(rows.shape)}, strides {rows.stride()}"
        raise InputError("rows are not contiguous [ranks, ...]", where="exchange_rows", why=why)


def _fake(rows: Tensor, group: str) -> Tensor:
    _check(rows)
    return rows.new_empty(rows.shape)


_library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("exchange_rows", _exchanged, "CompositeExplicitAutograd")
torch.library.register_fake("lightint::exchange_rows", _fake, lib=_library)
torch.library.register_autograd("lightint::exchange_rows", no_gradient, lib=_library)

EXCHANGE = torch.ops.lightint.exchange_rows.default


@functools.cache
def lower_as_collective() -> None:
    """Tell Inductor that the operator is a collective.

    So it starts collectives in the order of the graph on every rank, and leaves ``rows`` alone until the wait: where
    the backend of the group sends them, it reads them until then.
    """
    from torch._inductor.ir import TensorBox, _CollectiveKernel
    from torch._inductor.lowering import add_layout_constraint, constrain_to_fx_strides, register_lowering

    add_layout_constraint(EXCHANGE, constrain_to_fx_strides)

    @register_lowering(EXCHANGE, type_promotion_kind=None)  # type: ignore[untyped-decorator]
    def _lowered(rows: Any, group: str) -> Any:
        started: Any = _CollectiveKernel.create_out_of_place(EXCHANGE, rows, group)
        return TensorBox.create(started)
