"""Keys and values of context frames between chunks: the tensors, and whose they are."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightint_compile.passes.decisions.points import KeepPoint, RecallPoint
from lightint_compile.passes.decisions.policy import Policy
from lightint_compile.runtime.frames import KeptFrames, Share
from lightint_compile.runtime.measures import relative_change
from lightint_compile.runtime.stamps import Stamp

STORES = 2
"""Rollouts whose values are kept at once, such as the two of classifier-free guidance; the idle one makes room."""


def fingerprints(frames: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
    """A few sums over all that ``frames`` hold of each frame: [F, 3 * len(frames)] in float64, on the first's device.

    The sum, a sum weighted by place, so that a mirrored frame is another frame, and the sum of squares of each tensor.
    All come of two products with one row a frame: three launches and one for each tensor.
    """
    rows = [tensor.detach().movedim(axis, 0) for tensor, axis in zip(frames, axes, strict=True)]
    count, sizes = min(map(len, rows)), tuple(math.prod(each.shape[1:]) for each in rows)
    joined = rows[0].new_empty((count, sum(sizes)), dtype=torch.float64)
    for part, each in zip(joined.split(sizes, 1), rows, strict=True):
        part.view(count, *each.shape[1:]).copy_(each[:count])
    plain, placed = _sums(sizes, joined.device)
    return torch.cat([joined @ placed, joined.square_() @ plain], 1)


@lru_cache(maxsize=4)
def _sums(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What sums over parts of a row of these sizes, [sum of sizes, parts], and that beside the sums by place."""
    with torch.inference_mode(False):
        plain = torch.block_diag(*(torch.ones(size, 1, dtype=torch.float64) for size in sizes))
        places = (torch.linspace(1.0, 2.0, size, dtype=torch.float64)[:, None] for size in sizes)
        return plain.to(device), torch.cat([plain, torch.block_diag(*places)], 1).to(device)


class Store:
    """The values of one rollout.

    Attributes:
        stamp: what they depend on besides frames.
        frames: which frames they belong to.
        drift: how far old values were from new ones, a scalar on the device, until it was read.
    """

    def __init__(self, stamp: Stamp, policy: Policy) -> None:
        self.stamp = stamp
        self.frames = KeptFrames(policy.slots, policy.age)
        self.drift: Tensor | None = None
        self.pools: dict[int, Tensor] = {}
        self.user: weakref.ref[Use] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a chunk of another thread is between its plan and its last value."""
        user = self.user() if self.user is not None else None
        return user is not None and not user.is_done and user.thread != threading.get_ident()


class Use:
    """What one chunk recalls and keeps; it belongs to the chunk's record, so that two threads do not meet in it.

    Attributes:
        share: how the context divides.
        is_done: whether all of the chunk's values were kept.
    """

    def __init__(self, store: Store | None, share: Share) -> None:
        self.share, self.thread = share, threading.get_ident()
        self.is_done = False
        self._store, self._sites = store, 0
        self._places = _runs(share.fresh)
        self._unread: dict[object, Tensor] = {}

    @property
    def slots(self) -> tuple[int, ...]:
        """Where the values of the kept frames are."""
        return self.share.kept

    def recall(self, spec: RecallPoint, *sizes: int) -> Tensor:
        """All slots of a site, for reading; those of kept frames hold their values, and no others are to be read."""
        shape = tuple(spec.sized(sizes))
        if self._store is None:  # none of them is read, so that sites may share them
            place = shape, spec.dtype, spec.device
            if place not in self._unread:
                self._unread[place] = _slots(spec, shape)
            return self._unread[place]
        pool = self._store.pools.get(spec.site)
        if pool is None or (pool.shape != shape and not self.slots):
            pool = self._store.pools[spec.site] = _slots(spec, shape)
        return pool

    def keep(self, spec: KeepPoint, values: Tensor) -> None:
        """Keep what was computed for the fresh frames of a site; after the last one they are there for later chunks."""
        store = self._store
        if store is None:
            return
        tokens = store.pools[spec.site].view([*values.shape[: spec.axis], -1, *values.shape[spec.axis + 1 :]])
        if spec.site == spec.sites - 1 and self.share.older:
            store.drift = self._drift(spec, tokens, values)
        first, each = 0, spec.frame_tokens
        for slot, count in self._places:
            part = values.narrow(spec.axis, first, count * each) if len(self._places) > 1 else values
            tokens.narrow(spec.axis, slot * each, count * each).copy_(part.detach())
            first += count * each
        self._sites += 1
        if self._sites == spec.sites:
            store.frames.commit(self.share)
            self.is_done = True

    def _drift(self, spec: KeepPoint, tokens: Tensor, values: Tensor) -> Tensor:
        """How far the fresh values are from those of the same frames that are still in their slots."""
        slots = [self.share.fresh[place] for place in self.share.older]
        then, now = (
            torch.cat([frames.narrow(spec.axis, place, count) for place, count in _runs(places)], spec.axis)
            for frames, places in (
                (tokens.unflatten(spec.axis, (-1, spec.frame_tokens)), slots),
                (values.detach().unflatten(spec.axis, (-1, spec.frame_tokens)), self.share.older),
            )
        )
        return relative_change(now.movedim(spec.axis, 1).flatten(3), then.movedim(spec.axis, 1).flatten(3)).amax()


class Keeping:
    """The stores of one driver.

    Args:
        policy: age, drift, and the most context frames.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._stores: list[Store] = []
        self._lock = threading.Lock()

    def drifts(self) -> list[tuple[Store, Tensor]]:
        """What was measured since last read, to be read together with everything else; it counts as read."""
        with self._lock:
            found = [(store, store.drift) for store in self._stores if store.drift is not None]
            for store, _ in found:
                store.drift = None
        return found  # type: ignore[return-value]

    def heard(self, store: Store, drift: float) -> None:
        """The number behind one of :meth:`drifts`."""
        if self._policy.drift is not None:
            store.frames.drifted(drift, self._policy.drift)

    def begin(
        self, chunk: int, context: Sequence[int], prints: Sequence[Sequence[float]], inputs: Sequence[Tensor]
    ) -> Use:
        """How the chunk's context divides.

        Nothing is kept where a write to an input could not be seen, or another thread is in the middle of the same
        rollout; such a chunk computes everything.
        """
        fresh = Share(chunk, (), tuple(range(len(context))), (), ())
        if self._policy.age == 0:
            return Use(None, fresh)
        with self._lock:
            store = self._store(inputs)
            if store is None:
                return Use(None, fresh)
            use = Use(store, store.frames.share(chunk, context, {frame: tuple(prints[frame]) for frame in context}))
            store.user = weakref.ref(use)
            return use

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._stores.clear()

    def _store(self, inputs: Sequence[Tensor]) -> Store | None:
        """The store of these inputs, used last from now on; ``None`` while another thread uses it, or without one."""
        found = next((store for store in self._stores if store.stamp.holds(inputs)), None)
        if found is None:
            made = Stamp.of(inputs)
            found = None if made is None else Store(made, self._policy)
        if found is None or found.is_busy:
            return None
        # Of the same tensors there is one store: an older one can never hold again once they were written to.
        stamp = found.stamp
        others = [store for store in self._stores if store.stamp.is_alive and store.stamp.marks != stamp.marks]
        self._stores = [*others[1 - STORES :], found]
        return found


def _slots(spec: RecallPoint, shape: Sequence[int]) -> Tensor:
    with torch.inference_mode(False):  # an ordinary tensor, that calls in either mode may write to
        return torch.empty(shape, dtype=getattr(torch, spec.dtype), device=spec.device)


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Places as (first, count) of those in a row: copies of a run go at the speed of memory, lists of places do not."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and sum(runs[-1]) == place:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((place, 1))
    return runs
