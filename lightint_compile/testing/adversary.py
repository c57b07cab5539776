"""Plays a scenario twice, eager and compiled, and compares everything that the caller can see after every step."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lightint_compile.errors import LightintError
from lightint_compile.testing.compiling import Compiler, eager
from lightint_compile.testing.finding import Finding
from lightint_compile.testing.scenario import Scenario
from lightint_compile.testing.side import Side

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Relative to the largest value; what was written differs by much more."""


_STOCK = ("eager", "inductor")
"""Dynamo alone, which is quick, and the stock backend."""

_NUDGED, _SHAKEN = "nudged", "shaken"
"""Eager with weights changed in their last bits, by a little or by more."""

_ULPS = {_NUDGED: 2.0, _SHAKEN: 8.0}
"""By so many of a number's last places."""


def judge(scenario: Scenario) -> Finding[Scenario] | None:
    """The first difference from eager that the stock backend does not show too; ``None`` without one."""
    found = play(scenario, "lightint")
    if found is None:
        return None
    same = any(_is_same(play(scenario, backend), found) for backend in _STOCK)
    if same or (found[1] == "numbers" and _is_rounding(scenario, found)):
        return None
    return Finding(scenario, found[1], f"step {found[0]}: {found[2]}")


def _is_same(other: tuple[int, str, str] | None, found: tuple[int, str, str]) -> bool:
    return other is not None and other[:2] == found[:2]


def _is_rounding(scenario: Scenario, found: tuple[int, str, str]) -> bool:
    """Whether eager's numbers move as far by themselves.

    A nudge moves them at that step; or a shake moves some of them, and in float64 there is no difference at all.
    """
    if _is_same(play(scenario, _NUDGED), found):
        return True
    if scenario.world.dtype == "float64":
        return False
    shaken = play(scenario, _SHAKEN)
    if shaken is None or shaken[1] != "numbers":
        return False
    return play(replace(scenario, world=replace(scenario.world, dtype="float64")), "lightint") is None


def play(scenario: Scenario, backend: str) -> tuple[int, str, str] | None:
    """Step, check and detail of the first difference between eager and ``backend``."""
    torch._dynamo.reset()
    world, setup = scenario.world, scenario.setup
    with _quiet(), _same_random_numbers(scenario), _sizes_as_configured():
        try:
            plain = Side(world, eager, concurrent=False, caller=setup.caller)
            ulps = _ULPS.get(backend, 0.0)
            call = eager if ulps else Compiler(setup, backend, world.blocks == 1)
            other = Side(world, call, concurrent=not ulps, is_ours=backend == "lightint", caller=setup.caller)
            if ulps:
                _nudge(other, ulps)
            for step, action in enumerate(_actions(scenario)):
                found = _difference(plain, other, action, _tolerance(scenario))
                if found is not None:
                    return step, *found
        finally:
            torch._dynamo.reset()
            _leave_forward_mode()
    return None


def _leave_forward_mode() -> None:
    """Closes the level that a failed assertion of torch 2.11 inside a ``jvp`` leaves open: no later one could start."""
    try:
        forward_ad.exit_dual_level(level=forward_ad.enter_dual_level())
    except RuntimeError:
        torch._C._exit_dual_level(level=0)


@torch.no_grad()
def _nudge(side: Side, ulps: float) -> None:
    for parameter in side.module.parameters():
        if parameter.is_floating_point():
            parameter.mul_(1.0 + ulps * torch.finfo(parameter.dtype).eps)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and passes log and warn of: errors of the caller are part of the play."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _sizes_as_configured() -> contextlib.AbstractContextManager[None]:
    """Puts back what calls in two threads under ``dynamic=True`` leave behind in torch 2.11.

    Each sets the option for all threads and puts back what it found: every later graph has symbolic sizes, and numbers
    among its inputs.
    """
    config: Any = torch._dynamo.config
    kept: contextlib.AbstractContextManager[None] = config.patch(
        assume_static_by_default=config.assume_static_by_default
    )
    return kept


@contextlib.contextmanager
def _same_random_numbers(scenario: Scenario) -> Iterator[None]:
    """Eager's random numbers on the other side too, and the process's own left alone, where numbers are drawn."""
    if not scenario.world.is_random:
        yield
        return
    import torch._inductor.config

    with torch.random.fork_rng(devices=[]), torch._inductor.config.patch(fallback_random=True):
        yield


def _actions(scenario: Scenario) -> Iterator[Callable[[Side], None]]:
    yield Side.run
    for event in scenario.events:
        yield event.happen
        for _ in range(event.calls):
            yield Side.run


def _tolerance(scenario: Scenario) -> float:
    """What a scenario adds to the rounding of a tensor's own dtype: values that come from a coarser one."""
    if _is_coarse(scenario):
        return _TOLERANCE[torch.bfloat16]
    return _TOLERANCE[torch.float32] if any(event.verb == "dtype" for event in scenario.events) else 0.0


def _is_coarse(scenario: Scenario) -> bool:
    """Whether results come out of bfloat16."""
    world = scenario.world
    return (
        "autocast" in (world.flow, *(event.how for event in scenario.events))
        or world.dtype == "bfloat16"
        or any((event.verb, event.how) == ("dtype", "bfloat16") for event in scenario.events)
    )


def _difference(plain: Side, other: Side, action: Callable[[Side], None], tolerance: float) -> tuple[str, str] | None:
    errors = [_error(side, action) for side in (plain, other)]
    expected, got = errors
    if got is not None and expected is None:
        return "raises", f"{type(got).__name__}: {' '.join(str(got).split())[:300]}"
    if expected is not None and got is None:
        return "does not raise", f"eager raises {type(expected).__name__}: {str(expected)[:200]}"
    if isinstance(got, LightintError):
        return "raises", f"{type(got).__name__} where eager raises {type(expected).__name__}"
    return next(_looks(plain, other, tolerance), None)


def _error(side: Side, action: Callable[[Side], None]) -> Exception | None:
    try:
        action(side)
    except Exception as error:
        return error
    return None


def _looks(plain: Side, other: Side, tolerance: float) -> Iterator[tuple[str, str]]:
    """What can be seen on one side and not on the other."""
    if plain.structure != other.structure:
        yield "structure", f"{other.structure}, eager's is {plain.structure}"
    mine, theirs = plain.tensors(), other.tensors()
    if list(mine) != list(theirs):
        yield "structure", f"tensors {sorted(mine.keys() ^ theirs.keys())} are on one side only"
    for name, expected in mine.items():
        got = theirs[name]
        if kind := _kind(expected, got):
            yield "kind", f"{name}: {kind}"
        elif detail := _farther(expected, got, tolerance, name.startswith("result")):
            yield "numbers", f"{name}: {detail}"
    shared = _shared(theirs) - _shared(mine)
    if shared:
        yield "memory", f"{' and '.join(sorted(min(shared, key=sorted)))} share memory, eager's do not"


def _kind(expected: Tensor, got: Tensor) -> str:
    """How they differ besides their values."""
    for what in ("shape", "dtype", "requires_grad"):
        if getattr(expected, what) != getattr(got, what):
            return f"{what} {getattr(got, what)}, eager's is {getattr(expected, what)}"
    for what in ("is_inference", "is_conj", "is_neg"):
        if getattr(expected, what)() != getattr(got, what)():
            return f"{what} {getattr(got, what)()}, eager's is {getattr(expected, what)()}"
    strides = [[s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1] for x in (expected, got)]
    return f"strides {got.stride()}, eager's are {expected.stride()}" if strides[0] != strides[1] else ""


def _farther(expected: Tensor, got: Tensor, tolerance: float, is_result: bool) -> str:
    """How far values are apart in words; empty within rounding."""
    with torch.no_grad():
        if expected.is_complex():
            expected, got = (torch.view_as_real(each.resolve_conj()) for each in (expected, got))
        if not expected.is_floating_point():
            # Places of what is sorted or compared hang on the last bits of coarse values.
            coarse = is_result and tolerance >= _TOLERANCE[torch.bfloat16]
            return "" if coarse or torch.equal(expected, got) else "other integers"
        tolerance = max(tolerance, _TOLERANCE[expected.dtype])
        a, b = expected.detach().double(), got.detach().double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            return "finite elsewhere"
        a, b = a.nan_to_num(0.0, 0.0, 0.0), b.nan_to_num(0.0, 0.0, 0.0)
        scale = float(a.abs().max()) if a.numel() else 0.0
        error = float((a - b).abs().max()) if a.numel() else 0.0
        return "" if error <= tolerance * scale + 1e-12 else f"off by {error:.3g}, the largest value is {scale:.3g}"


def _shared(tensors: dict[str, Tensor]) -> set[frozenset[str]]:
    """Pairs of tensors whose memory overlaps, where one of them is a result."""
    spans = {name: _span(tensor) for name, tensor in tensors.items() if tensor.numel()}
    return {
        frozenset((one, two))
        for one, two in combinations(spans, 2)
        if ("result" in one or "result" in two) and _overlap(spans[one], spans[two])
    }


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and last byte; views that interleave count as overlapping."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _overlap(one: tuple[int, int], two: tuple[int, int]) -> bool:
    return one[0] < two[1] and two[0] < one[1]
