"""Keys and values of context frames between chunks: the tensors, and whose they are."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lightint_compile.kernels.checksum import Memory
from lightint_compile.passes.ir.decision_points import KeepPoint, RecallPoint
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.runtime.content_check import Content
from lightint_compile.runtime.content_sums import Checksums
from lightint_compile.runtime.drift import relative_change
from lightint_compile.runtime.kept_frames import Fingerprint, KeptFrames, Share
from lightint_compile.runtime.streams import Order

STORES = 2
"""Rollouts whose values are kept at once, such as the two of classifier-free guidance; the idle one makes room."""


def frame_sums(frames: Sequence[Tensor], axes: Sequence[int]) -> Checksums:
    """Checksums of all that ``frames``, on one device, hold of each frame, started; ``axes`` are their frame axes."""
    rows = [each.contiguous() for each in _rows(frames, axes)]
    return Checksums([Memory.of(rows, [len(each) for each in rows])] if rows else [])


def fingerprints(sums: Checksums, frames: Sequence[Tensor], axes: Sequence[int]) -> list[Fingerprint]:
    """For each frame the checksums of what the tensors hold of it, and how much that is."""
    rows = _rows(frames, axes)
    if not rows:
        return []
    count, sizes = len(rows[0]), tuple((*each.shape[1:], each.dtype) for each in rows)
    (values,) = sums.values()
    return [(*values[frame::count], sizes) for frame in range(count)]


def _rows(frames: Sequence[Tensor], axes: Sequence[int]) -> list[Tensor]:
    """The tensors with their frames in front, as many as all of them have."""
    rows = [tensor.detach().movedim(axis, 0) for tensor, axis in zip(frames, axes, strict=True)]
    count = min(map(len, rows), default=0)
    return [each[:count] for each in rows]


class Store:
    """The values of one rollout.

    Attributes:
        content: what they depend on besides frames.
        frames: which frames they belong to.
        drift: how far old values were from new ones, a scalar on the device, until it was read.
    """

    def __init__(self, content: Content, policy: Policy) -> None:
        self.content = content
        self.frames = KeptFrames(policy.slots, policy.age, policy.clip)
        self.drift: Tensor | None = None
        self.pools: dict[int, Tensor] = {}
        self.user: weakref.ref[Use] | None = None
        self.order = Order()

    def state(self) -> dict[str, Any]:
        """Plain data and copies of the tensors; :meth:`from_state` takes it back."""
        self.order.enter(self.pools.values())
        pools = {site: pool.clone() for site, pool in self.pools.items()}
        content = {"sums": self.content.sums, "layouts": self.content.layouts, "places": self.content.places}
        return {"content": content, "frames": self.frames.state(), "drift": self.drift, "pools": pools}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], policy: Policy) -> Self:
        """The inverse of :meth:`state`."""
        store = cls(Content(**state["content"]), policy)
        store.frames.restore(state["frames"])
        store.drift = state["drift"]
        store.pools = {site: pool.clone() for site, pool in state["pools"].items()}
        store.order.enter(store.pools.values())
        return store

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
        self._places = _runs([(place, slot) for place, slot in enumerate(share.fresh) if slot is not None])
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
            self._store.order.enter([pool])
        return pool

    def keep(self, spec: KeepPoint, values: Tensor) -> None:
        """Keep what was computed for the fresh frames of a site; after the last one they are there for later chunks."""
        store = self._store
        if store is None:
            return
        tokens = store.pools[spec.site].view([*values.shape[: spec.axis], -1, *values.shape[spec.axis + 1 :]])
        if spec.site == spec.sites - 1 and self.share.older:
            store.drift = self._drift(spec, tokens, values)
        each = spec.frame_tokens
        for place, slot, count in self._places:
            part = values.narrow(spec.axis, place * each, count * each)
            tokens.narrow(spec.axis, slot * each, count * each).copy_(part.detach())
        self._sites += 1
        if self._sites == spec.sites:
            store.frames.commit(self.share)
            self.is_done = True

    def _drift(self, spec: KeepPoint, tokens: Tensor, values: Tensor) -> Tensor:
        """How far the fresh values are from those of the same frames that are still in their slots."""
        slots = [slot for place in self.share.older if (slot := self.share.fresh[place]) is not None]
        then, now = (
            torch.cat([frames.narrow(spec.axis, *run[1:]) for run in _runs([*enumerate(places)])], spec.axis)
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
        """Record one of :meth:`drifts` after it was read to the host."""
        if self._policy.drift is not None:
            store.frames.drifted(drift, self._policy.drift)

    def begin(self, chunk: int, context: Sequence[int], prints: Sequence[Fingerprint], content: Content | None) -> Use:
        """How the chunk's context divides.

        Nothing is kept where the content of an input cannot be told (``None``), or another thread is in the middle of
        the same rollout; such a chunk computes everything.
        """
        fresh = Share(chunk, (), tuple(range(len(context))), (), ())
        if self._policy.age == 0 or content is None:
            return Use(None, fresh)
        with self._lock:
            store = self._store(content)
            if store is None:
                return Use(None, fresh)
            use = Use(store, store.frames.share(chunk, context, {frame: prints[frame] for frame in context}))
            store.user = weakref.ref(use)
            store.order.enter(store.pools.values())
            return use

    def state(self) -> list[dict[str, Any]]:
        """Plain data and copies of the tensors; :meth:`restore` takes it back."""
        with self._lock, torch.inference_mode(False):
            return [store.state() for store in self._stores]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Keep what :meth:`state` said, and nothing else."""
        with self._lock, torch.inference_mode(False):
            self._stores = [Store.from_state(each, self._policy) for each in state]

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._stores.clear()

    def _store(self, content: Content) -> Store | None:
        """The store of this content, used last from now on; ``None`` while another thread uses it."""
        found = next((store for store in self._stores if store.content.equals(content)), Store(content, self._policy))
        if found.is_busy:
            return None
        # What lay in the same places was written over: it is as large as the model, and would wait for its return.
        others = [store for store in self._stores if store is not found and not content.replaces(store.content)]
        self._stores = [*others[1 - STORES :], found]
        return found


def _slots(spec: RecallPoint, shape: Sequence[int]) -> Tensor:
    with torch.inference_mode(False):  # an ordinary tensor, that calls in either mode may write to
        return torch.empty(shape, dtype=getattr(torch, spec.dtype), device=spec.device)


def _runs(places: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Pairs of places as (first, first, count) of those in a row on both sides: copies of a run go at the speed of
    memory, lists of places do not."""
    runs: list[tuple[int, int, int]] = []
    for one, other in places:
        if runs and (one - runs[-1][2], other - runs[-1][2]) == runs[-1][:2]:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((one, other, 1))
    return runs
