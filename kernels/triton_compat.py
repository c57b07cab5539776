"""Differences between versions of Triton: what the kernels and their launches use of Triton, under stable names.

Importing this module needs Triton. Differences between versions of torch are in ``lightint_compile/torch_compat.py``.

* Gluon's copies of tiles are called ``async_load`` and ``async_store`` from 3.7 on.
* A compiled kernel is started by a function of its own up to 3.6, and from 3.7 on by one function of the driver, which
  takes the kernel's argument types beside its arguments. The function that makes descriptors takes one argument more
  from 3.8 on; descriptors have fields that 3.6 does not know.
* Whether a multiplication and an addition become one instruction is a default that will change with 3.10
  (3.9 warns of it), and with it the last bits of every result. It is stated at every launch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any

import triton

from lightint_compile.torch_compat import release, triton_launches_are_traced

OLDEST, NEWEST = (3, 6), (3, 9)
"""The first and the last version of Triton that the sm_90 kernel was compiled and compared with."""

TRITON = release(triton.__version__)
"""(major, minor) of the Triton that runs."""

OPTIONS = {"enable_fp_fusion": True}
"""Options that every launch states, so that all versions give the same numbers."""


def stated() -> dict[str, Any]:
    """:data:`OPTIONS` for a launch by ``wrap_triton``; none while it is traced: Inductor states its own, the same."""
    return {} if triton_launches_are_traced() else OPTIONS


Starter = Callable[..., None]
"""Puts a compiled kernel on a stream: ``start(grid_x, grid_y, grid_z, stream, arguments)``, descriptors expanded."""


def gluon_obstacle() -> str | None:
    """Why the Gluon kernels should not be tried with this Triton; None where they were compiled and compared."""
    if OLDEST <= TRITON <= NEWEST:
        return None
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
    return f"the sm_90 kernel is written for Triton {oldest} to {newest}, this is {triton.__version__}"


def tile_copies() -> tuple[Any, Any]:
    """Gluon's asynchronous copies of a tile: from global to shared memory, and back."""
    from triton.experimental.gluon.language.nvidia.hopper import tma

    if hasattr(tma, "async_load"):
        return tma.async_load, tma.async_store
    return tma.async_copy_global_to_shared, tma.async_copy_shared_to_global


def descriptor_fields(kind: type) -> dict[str, Any]:
    """The fields of a class of descriptors that have defaults; later versions have more of them."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def described(descriptor: Any, meta: Any) -> tuple[Any, ...]:
    """What a started kernel takes for a descriptor; it holds the address, not the tensor."""
    from triton.backends.nvidia.driver import make_tensordesc_arg

    more = (None,) if TRITON >= (3, 8) else ()
    return tuple(make_tensordesc_arg(descriptor, meta, *more))


def starter(compiled: Any) -> Starter | None:
    """How to start a compiled kernel without scratch buffers and launch hooks; None for one that needs either.

    ``compiled`` is None where Triton interprets.
    """
    if compiled is None or TRITON > NEWEST:
        return None
    run = compiled.run
    if run.global_scratch_size or run.profile_scratch_size or getattr(run, "gsan_enabled", False):
        return None
    return _own_starter(compiled) if TRITON < (3, 7) else _driver_starter(compiled)


def _own_starter(compiled: Any) -> Starter | None:
    """Up to 3.6: of a kernel with descriptors the function is hidden behind one that expands them."""
    run = compiled.run
    start = run.launch
    if inspect.isfunction(start):
        start = inspect.getclosurevars(start).nonlocals.get("launcher")
        if start is None:
            return None
    shape, nobody = (run.launch_cooperative_grid, run.launch_pdl), (None, None, None)
    handles = (compiled.function, *shape, None, None, compiled.packed_metadata, *nobody)

    def start_own(x: int, y: int, z: int, stream: int, arguments: Sequence[Any]) -> None:
        start(x, y, z, stream, *handles, *arguments)

    return start_own


def _driver_starter(compiled: Any) -> Starter:
    """From 3.7 on: the driver's one function, with the metadata of this kernel's arguments."""
    run, launch = compiled.run, triton.runtime.driver.active.utils.launch
    shape, nobody = (run.launch_cooperative_grid, run.launch_pdl), (None, None, None)
    told = (compiled.packed_metadata, *nobody, None, None)
    before = (compiled.function, *shape, *told, run.arg_annotations, run.kernel_signature)

    def start_driver(x: int, y: int, z: int, stream: int, arguments: Sequence[Any]) -> None:
        launch(x, y, z, stream, *before, arguments)

    return start_driver
