"""The plan of a call of sparse attention, made once per set of shapes: checks, dense or sparse, bound launches.

A model calls its attention sites thousands of times with a handful of shapes. What follows from shapes, strides,
dtypes, device and settings alone is kept under them, so that a repeated call goes to its kernels in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import checks, dispatch
from .settings import Settings
from .spans import Cutting, Spans, as_output, heads_last
from .steps import ContextPools, default_scale, run_steps
from .tiles import Layout

Segments = Sequence[Tensor]
Plan = Callable[[Tensor, Segments, Segments, ContextPools], Tensor]

_plans: dict[tuple[Any, ...], Plan] = {}
_MOST_PLANS = 1024


def run(query: Tensor, keys: Segments, values: Segments, pools: ContextPools, settings: Settings) -> Tensor:
    """Sparse attention of real tensors.

    Raises:
        InputError: arguments that do not fit together.
    """
    key = _signature(query, keys, values, pools, settings)
    plan = _plans.get(key)
    if plan is None:
        plan = _make(query, keys, values, pools, settings)
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan(query, keys, values, pools)


def forget() -> None:
    """Drop every plan, for when the cost model has learnt something."""
    _plans.clear()


def _signature(
    query: Tensor, keys: Segments, values: Segments, pools: ContextPools, settings: Settings
) -> tuple[Any, ...]:
    """Everything that a plan may depend on."""
    forms = [None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in (query, *keys, *values, *pools)]
    where = (tuple(settings.query_grid), tuple(settings.key_grid), settings.prefix, tuple(settings.tile))
    return (len(keys), len(values), *forms, where, settings[4:], dispatch.forced(), _capturing(query))


def _capturing(query: Tensor) -> bool:
    """Whether a CUDA graph is being captured, whose replays will not wait for the host."""
    return query.is_cuda and torch.cuda.is_current_stream_capturing()


def _make(query: Tensor, keys: Segments, values: Segments, pools: ContextPools, settings: Settings) -> Plan:
    layout, policy, parts = settings.checked(query, keys, values), settings.policy, settings.skipped_means
    checks.given_pools(pools, keys[0], layout, parts)
    kept = (policy.density, policy.protect_frames, policy.neighbours, policy.context_density)
    width = int(layout.list_width(*kept))
    choice = dispatch.prefers_sparse(
        query, layout, width, parts, settings.tile, min_tokens=settings.min_tokens, host_hidden=_capturing(query)
    )
    if choice == "dense" or layout.keeps_all(*kept, policy.coverage):
        return _dense(query, keys, policy.scale)
    return _sparse(dispatch.load(choice), query, keys, values, pools, layout, policy.arguments(query), parts)


def _dense(query: Tensor, keys: Segments, scale: float | None) -> Plan:
    factor, grouped = default_scale(scale, query), keys[0].shape[1] != query.shape[1]
    _, heads, tokens, dim = query.shape
    by_head, by_token = (dim, heads * dim) if heads_last(query) else (tokens * dim, dim)
    strides = (heads * tokens * dim, by_head, by_token, 1)
    options: dict[str, Any] = {"scale": factor, "enable_gqa": True} if grouped else {"scale": factor}
    attend = torch.nn.functional.scaled_dot_product_attention

    def dense(query: Tensor, keys: Segments, values: Segments, _: ContextPools) -> Tensor:
        if len(keys) == 1:
            out = attend(query, keys[0], values[0], **options)
        else:
            out = attend(query, torch.cat(list(keys), 2), torch.cat(list(values), 2), **options)
        return out if out.stride() == strides else as_output(out, query)

    return dense


def _sparse(
    steps: dispatch.Implementation,
    query: Tensor,
    keys: Segments,
    values: Segments,
    pools: ContextPools,
    layout: Layout,
    chosen: dict[str, Any],
    parts: int,
) -> Plan:
    cut = Cutting([key.shape[2] for key in keys], layout)
    bound = _bound(steps, query, cut.filled(keys), cut.filled(values), pools, layout, chosen, parts)

    def sparse(query: Tensor, keys: Segments, values: Segments, pools: ContextPools) -> Tensor:
        if bound is not None:
            found = bound(query, cut.filled(keys), cut.filled(values), pools)
            if found is not None:
                return found
        with on_device_of(query):
            return run_steps(steps, query, cut(keys), cut(values), layout, chosen, pools, parts)

    return sparse


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device whatever its arguments; inside this, that is the tensor's device."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def _bound(
    steps: dispatch.Implementation,
    query: Tensor,
    keys: Spans,
    values: Spans,
    pools: ContextPools,
    layout: Layout,
    chosen: dict[str, Any],
    parts: int,
) -> Callable[..., Tensor | None] | None:
    """The implementation's bound launches, where it has some for such tensors."""
    bind = getattr(steps, "bind", None)
    if bind is None or any(pool is not None and not pool.is_contiguous() for pool in pools):
        return None
    found: Callable[..., Tensor | None] | None = bind(query, keys, values, layout, chosen, pools=pools, parts=parts)
    return found
