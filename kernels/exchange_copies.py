"""Exchanges of rows between GPUs by copies: ranks read each other's staging slots in torch's symmetric memory.

An exchange copies the rows for others into a slot of this rank's memory, on the caller's stream. On a side stream it
meets the other ranks (a barrier on the GPUs), reads its row from the slot of each, and records an event, for which the
caller's stream waits when the result is waited for. torch's low-contention gather works in the same manner; here slots
rotate, so that several exchanges are on their way at once.

**When a slot may be written again.** A lane numbers its exchanges; number ``n`` uses slot ``n % SLOTS``. On every rank
a lane's side stream works in order, so a rank that arrives at the barrier of ``m`` has read for everything before
``m``. Hence a stream that waits for ``m`` is behind all reads, of all ranks, of exchanges before ``m``. A caller that
did not wait for a late enough one waits for all of the side stream in front of the copy into the slot. That is decided
by what this rank knows, and meets nobody: ranks may differ in it.

**CUDA graphs.** What is recorded has a lane of its own: slots, barriers and a side stream that nothing else uses. What
an earlier replay or another graph left behind is not known when a graph is recorded, so its first exchange meets the
others in front of the first copy into a slot. By then each of them is past its earlier graphs, which end behind their
side streams: all reads are over. Numbers begin anew in each graph, so that a recording that failed on one rank leaves
the slots of later ones alike. Graphs of a group follow each other on one stream, as NCCL asks as well. Exchanges that
were started outside may still be on their way, in the other lane.

**Memory.** Nothing reads ``rows`` but the caller's stream. A result belongs to the caller's stream and is written by
the side stream, which began behind all that the caller's stream did before; the work that is registered for it keeps it
alive until somebody waits.
"""

from __future__ import annotations

import socket
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _register_work

from lightint_compile.errors import StateError

SLOTS = 4
"""Exchanges of a lane that may be on their way before the next one waits; an attention has three."""

_LANES = 2
_UNIT = 2**21
"""Bytes that slots are a multiple of."""


class Lane:
    """Exchanges that follow each other on one side stream.

    Args:
        memory: of all ranks.
        place: which lane of that memory this is.
    """

    def __init__(self, memory: Memory, place: int) -> None:
        self._memory, self._place = memory, place
        self._side = torch.cuda.Stream(memory.device, priority=-1)
        self._caller: torch.cuda.Stream | None = None
        self._number = self._first = self._read = 0

    @property
    def is_used(self) -> bool:
        """Whether anything was exchanged."""
        return self._number > 0

    def start(self, rows: Tensor) -> Tensor:
        """See :func:`~lightint_compile.kernels.exchange.exchange_rows`; the rows fit into a slot."""
        memory, result = self._memory, rows.new_empty(rows.shape)
        ours, theirs = (each.view(memory.count, -1).view(torch.uint8) for each in (rows, result))
        with torch.cuda.device(memory.device):
            caller = torch.cuda.current_stream()
            self._reach(caller)
            number, slot = self._number, (self._number - self._first) % SLOTS
            self._number += 1
            memory.stage(ours, self._place, slot)
            theirs[memory.rank].copy_(ours[memory.rank])
            self._side.wait_stream(caller)
            with torch.cuda.stream(self._side):
                memory.meet(self._place)
                memory.pull(theirs, self._place, slot)
                arrival = Arrival(self, number, result)
        _register_work(result, arrival)
        return result

    def waited(self, number: int) -> None:
        """The current stream waits for an exchange."""
        if torch.cuda.current_stream(self._memory.device) == self._caller:
            self._read = max(self._read, number)

    def _reach(self, caller: torch.cuda.Stream) -> None:
        """Let the caller's stream be behind all reads of the slot that comes next."""
        if torch.cuda.is_current_stream_capturing() and not _is_capturing(self._side):
            self._first = self._read = self._number
            self._side.wait_stream(caller)
            with torch.cuda.stream(self._side):
                self._memory.meet(self._place)
            caller.wait_stream(self._side)
        elif (self._caller or caller) != caller or self._number - self._read >= SLOTS:
            caller.wait_stream(self._side)
            self._read = self._number - 1
        self._caller = caller


class Arrival(dist.Work):  # type: ignore[misc]
    """An exchange that is on its way, made on the side stream behind all of it; ``wait_tensor`` asks it."""

    def __init__(self, lane: Lane, number: int, result: Tensor) -> None:
        super().__init__()
        self._lane, self._number, self._result = lane, number, result
        self._event = torch.cuda.Event()
        self._event.record()

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Let the current stream wait; the host does not."""
        device = self._result.device
        torch.cuda.current_stream(device).wait_event(self._event)
        self._lane.waited(self._number)
        return True


class Memory:
    """Staging slots of all ranks of a group: on each as many of ``size`` bytes as the lanes have.

    Args:
        block: this rank's, which the ranks know of each other.
        handle: torch's handle of it.
    """

    def __init__(self, block: Tensor, handle: Any, size: int, patience: timedelta) -> None:
        self.device, self.size, self.rank, self.count = block.device, size, handle.rank, handle.world_size
        self._block: Tensor | None = block
        self._handle, self._patience = handle, int(patience.total_seconds() * 1e3)
        shape = (_LANES, SLOTS, size)
        self._slots = [handle.get_buffer(rank, shape, torch.uint8) for rank in range(self.count)]

    def release(self) -> None:
        """Give it back: nothing is exchanged in it any more. Other ranks may still read it, and hold it until then."""
        torch.cuda.synchronize(self.device)
        self._slots, self._handle, self._block = [], None, None

    def stage(self, rows: Tensor, lane: int, slot: int) -> None:
        """Copy the rows for others, ``[ranks, bytes]``, into a slot of this rank, without a gap for its own."""
        width, own = rows.shape[1], self.rank
        staged = self._slots[own][lane, slot]
        if own:
            staged[: own * width].view(own, width).copy_(rows[:own])
        if behind := self.count - own - 1:
            staged[own * width : (self.count - 1) * width].view(behind, width).copy_(rows[own + 1 :])

    def pull(self, rows: Tensor, lane: int, slot: int) -> None:
        """Copy what every other rank has for this one into its row; each rank begins at another one."""
        width = rows.shape[1]
        for step in range(1, self.count):
            rank = (self.rank + step) % self.count
            place = (self.rank - (self.rank > rank)) * width
            rows[rank].copy_(self._slots[rank][lane, slot, place : place + width])

    def meet(self, lane: int) -> None:
        """A barrier of the current streams of all ranks; one that waits for longer than the group's timeout traps."""
        self._handle.barrier(lane, self._patience)


def _is_capturing(stream: torch.cuda.Stream) -> bool:
    with torch.cuda.stream(stream):
        return torch.cuda.is_current_stream_capturing()


# --- what a group has ------------------------------------------------------------------------------------------------


class Lanes(NamedTuple):
    """Those of one memory: of eager exchanges, and of those that are recorded in CUDA graphs."""

    memory: Memory
    eager: Lane
    recorded: Lane


_found: weakref.WeakKeyDictionary[Any, dict[torch.device, Lanes | None]] = weakref.WeakKeyDictionary()
"""The lanes of each group; ``None`` where there is no memory to be had."""

_recorded: list[Memory] = []
"""Memory that graphs hold addresses of: it stays where it is when exchanges outgrow it, or the group is left."""


def lane_for(group: Any, rows: Tensor) -> Lane | None:
    """The lane in which rows ``[ranks, ...]`` are exchanged now; ``None`` on all ranks where there is none to be had.

    All ranks call this with rows of one size in one order, so all of them make memory, or a larger one, in one call.

    Raises:
        StateError: a CUDA graph is being recorded, and there is no memory of this size yet.
    """
    known, device = _found.setdefault(group, {}), rows.device
    needed = rows.nbytes // group.size() * (group.size() - 1)
    lanes = known.get(device)
    records = torch.cuda.is_current_stream_capturing()
    if device not in known or (lanes is not None and lanes.memory.size < needed):
        if records:
            why = f"no exchange of {needed} bytes was made before, and to make room for it ranks must meet"
            raise StateError("a recording cannot begin with exchanges", why=why, fix="make the same call once before")
        size = _grown(needed, lanes)
        if lanes is not None and not lanes.recorded.is_used:
            lanes.memory.release()
        memory = _made(group, device, size)
        lanes = None if memory is None else Lanes(memory, *(Lane(memory, place) for place in range(_LANES)))
        known[device] = lanes
    if lanes is None:
        return None
    if not records:
        return lanes.eager
    if not lanes.recorded.is_used:
        _recorded.append(lanes.memory)
    return lanes.recorded


def _grown(needed: int, lanes: Lanes | None) -> int:
    """Bytes of slots for exchanges of so many; they grow by half at least, so that they seldom do."""
    least = max(needed, 0 if lanes is None else lanes.memory.size * 3 // 2)
    return -(-least // _UNIT) * _UNIT


def _made(group: Any, device: torch.device, size: int) -> Memory | None:
    """Memory of a group, where each of its ranks can have it; ``None`` on all of them otherwise.

    What one rank cannot do is told to the others in front of each step that all take together.
    """
    with torch.cuda.device(device), torch.inference_mode(False):  # what is made may be written to outside of that mode
        try:
            block = _block(group, device, size) if _reaches_all(group, device) else None
        except (RuntimeError, ImportError, AttributeError):  # no such memory on this device, or none is left
            block = None
        if not _all(group, block is not None):
            return None
        try:
            handle = _symmetric().rendezvous(block, group.group_name)
        except RuntimeError:  # a driver that does not let processes share memory
            handle = None
        if not _all(group, handle is not None):
            return None
        assert block is not None
        return Memory(block, handle, size, _patience(group, device))


def _symmetric() -> Any:
    from torch._C._distributed_c10d import _SymmetricMemory

    return _SymmetricMemory


def _block(group: Any, device: torch.device, size: int) -> Tensor:
    """Slots of this rank; memory that torch keeps for tensors to come makes room where that is all there is."""

    def made() -> Tensor:
        sizes = [_LANES * SLOTS * size]
        found: Tensor = _symmetric().empty_strided_p2p(sizes, [1], torch.uint8, device, group.group_name)
        return found

    try:
        return made()
    except RuntimeError:
        torch.cuda.empty_cache()
        return made()


def _reaches_all(group: Any, device: torch.device) -> bool:
    """Whether all ranks are on this host, on NVIDIA's GPUs, and this one's can read those of the others.

    A GPU that this process does not see is taken for one that can be read; to make memory fails otherwise.
    """
    own = _host(), None if torch.version.hip else _name(device)
    everyone: list[Any] = [None] * group.size()
    dist.all_gather_object(everyone, own, group=group)
    hosts, names = zip(*everyone, strict=True)
    if len(set(hosts)) > 1 or None in names:
        return False
    others = [other for other in range(torch.cuda.device_count()) if other != device.index and _name(other) in names]
    return all(torch.cuda.can_device_access_peer(device, other) for other in others)


def _host() -> tuple[str, str]:
    """A name of this machine, or of the container: memory is handed over through its processes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return socket.gethostname(), boot.read_text() if boot.exists() else ""


def _name(device: torch.device | int) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def _all(group: Any, own: bool) -> bool:
    """Whether something holds on every rank."""
    everyone: list[Any] = [None] * group.size()
    dist.all_gather_object(everyone, own, group=group)
    return all(everyone)


def _patience(group: Any, device: torch.device) -> timedelta:
    """How long ranks of a group wait for each other."""
    found = getattr(group._get_backend(device).options, "_timeout", None)
    return found if isinstance(found, timedelta) else timedelta(minutes=30)
