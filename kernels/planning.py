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
from .masked import dense_mask, run_masked
from .settings import Settings
from .spans import Cutting, Spans, as_output, heads_last
from .steps import ContextPools, default_scale, run_steps
from .tiles import Layout

Segments = Sequence[Tensor]
Plan = Callable[[Tensor, Segments, Segments, ContextPools, Tensor | None], Tensor]

_plans: dict[tuple[Any, ...], Plan] = {}
_MOST_PLANS = 1024


def run(
    query: Tensor,
    keys: Segments,
    values: Segments,
    pools: ContextPools,
    settings: Settings,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Sparse attention of real tensors.

    Raises:
        InputError: arguments that do not fit together.
    """
    key = _signature(query, keys, values, (*pools, key_mask), settings)
    plan = _plans.get(key)
    if plan is None:
        plan = _make(query, keys, values, pools, settings, key_mask)
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan(query, keys, values, pools, key_mask)


def forget() -> None:
    """Drop every plan, for when the cost model has learnt something."""
    _plans.clear()


def _signature(
    query: Tensor, keys: Segments, values: Segments, more: Sequence[Tensor | None], settings: Settings
) -> tuple[Any, ...]:
    """Everything that a plan may depend on."""
    forms = [None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in (query, *keys, *values, *more)]
    where = (tuple(settings.query_grid), tuple(settings.key_grid), settings.prefix, tuple(settings.tile))
    return (len(keys), len(values), *forms, where, settings[4:], dispatch.forced(), _capturing(query))


def _capturing(query: Tensor) -> bool:
    """Whether a CUDA graph is being captured, whose replays will not wait for the host."""
    return query.is_cuda and torch.cuda.is_current_stream_capturing()


def _make(
    query: Tensor,
    keys: Segments,
    values: Segments,
    pools: ContextPools,
    settings: Settings,
    key_mask: Tensor | None,
) -> Plan:
    layout, policy, parts = settings.checked(query, keys, values), settings.policy, settings.skipped_means
    checks.given_pools(pools, keys[0], layout, parts)
    if key_mask is not None:
        checks.key_mask(key_mask, query, layout)
    kept = (policy.density, policy.protect_frames, policy.neighbours, policy.context_density)
    width = int(layout.list_width(*kept))
    choice = dispatch.prefers_sparse(
        query, layout, width, parts, settings.tile, min_tokens=settings.min_tokens, host_hidden=_capturing(query)
    )
    if choice == "dense" or layout.keeps_all(*kept, policy.coverage):
        return _dense(query, keys, policy.scale, layout)
    steps, chosen = dispatch.load(choice), policy.arguments(query)
    if key_mask is not None:
        return _masked(steps, keys, layout, chosen, parts)
    return _sparse(steps, query, keys, values, pools, layout, chosen, parts)


def _dense(query: Tensor, keys: Segments, scale: float | None, layout: Layout) -> Plan:
    factor, grouped = default_scale(scale, query), keys[0].shape[1] != query.shape[1]
    _, heads, tokens, dim = query.shape
    by_head, by_token = (dim, heads * dim) if heads_last(query) else (tokens * dim, dim)
    strides = (heads * tokens * dim, by_head, by_token, 1)
    options: dict[str, Any] = {"scale": factor, "enable_gqa": True} if grouped else {"scale": factor}
    attend = torch.nn.functional.scaled_dot_product_attention

    def dense(query: Tensor, keys: Segments, values: Segments, _: ContextPools, key_mask: Tensor | None) -> Tensor:
        mask = None if key_mask is None else dense_mask(key_mask, query, layout)
        if len(keys) == 1:
            out = attend(query, keys[0], values[0], mask, **options)
        else:
            out = attend(query, torch.cat(list(keys), 2), torch.cat(list(values), 2), mask, **options)
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

    def sparse(query: Tensor, keys: Segments, values: Segments, pools: ContextPools, _: Tensor | None) -> Tensor:
        if bound is not None:
            found = bound(query, cut.filled(keys), cut.filled(values), pools)
            if found is not None:
                return found
        with on_device_of(query):
            return run_steps(steps, query, cut(keys), cut(values), layout, chosen, pools, parts)

    return sparse


def _masked(steps: dispatch.Implementation, keys: Segments, layout: Layout, chosen: dict[str, Any], parts: int) -> Plan:
    cut = Cutting([key.shape[2] for key in keys], layout)

    def masked(query: Tensor, keys: Segments, values: Segments, pools: ContextPools, key_mask: Tensor | None) -> Tensor:
        assert key_mask is not None
        with on_device_of(query):
            return run_masked(steps, query, cut(keys), cut(values), key_mask, layout, chosen, pools, parts)

    return masked


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
