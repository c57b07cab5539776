"""What happens between two calls of a model, as plain data: drawn from a seed, and done to both sides alike."""

from __future__ import annotations

import dataclasses
import gc
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightint_compile.testing.asking import ask
from lightint_compile.testing.changes import CHANGES
from lightint_compile.testing.drawn import Drawn
from lightint_compile.testing.side import MODES, Side
from lightint_compile.testing.world_features import WorldFeatures
from lightint_compile.testing.world_inputs import AXES, SIZED, arguments_of
from lightint_compile.testing.writes import MODULE_WAYS, VALUES, WAYS, write

_SEEDS = 1_000_000
"""Where seeds of events begin: none of them is a world's, which would write what is there already."""

_NUMBERS: dict[str, tuple[Any, ...]] = {
    "sigma": (0.5, 0.25, 1.0, 0.0, -1.5, 2, float("inf"), float("nan"), numpy.float64(0.75), [0.5], [0.1, 0.2, 0.3]),
    "step": (3, 0, 1, 2, 7, -1, 1000, True, 2**40),
    "wide": (False, True),
    "name": ("linear", "cosine", "none"),
}

#: Every event: verb, to ways of it, to how often it is drawn.
VERBS: dict[str, tuple[tuple[str, ...], float]] = {
    "write": (tuple(WAYS), 6.0),
    "module": (tuple(MODULE_WAYS), 2.0),
    "new": (("held", "freed"), 1.5),
    "back": (("",), 0.7),
    "size": (tuple(AXES), 0.8),
    "number": (tuple(_NUMBERS), 0.5),
    "mode": (tuple(MODES), 0.4),
    "train": (("",), 0.4),
    "dtype": (("", "bfloat16"), 0.3),
    "scribble": (("last", "first", "data", "numpy", "memory"), 3.0),
    "feed": (("",), 0.7),
    "bad": (("", "middle"), 0.5),
    "together": (("",), 0.4),
    "thread": (("",), 0.4),
    "again": (("compile", "copy", "reset", "dynamo"), 0.4),
    "look": (("report", "decisions", "explain"), 0.4),
    "backward": (("",), 0.4),
    "twin": (("",), 0.5),
    "drop": (("",), 0.3),
    "bare": (("",), 0.3),
    "want": (("argument", "module"), 0.3),
    "change": (tuple(CHANGES), 0.5),
}


@dataclass(frozen=True)
class Event(Drawn):
    """One thing that happens, before a call.

    Attributes:
        verb: what kind of thing, a key of :data:`VERBS`.
        how: one of the verb's ways.
        what: the tensor that is written to or replaced: ``parameter``, ``buffer`` or the name of an argument.
        value: what is written, a key of :data:`~lightint_compile.testing.writes.VALUES`.
        place: which parameter, which output, which size, modulo how many there are; seeds what is drawn.
        calls: how often the model is called afterwards.
    """

    WHAT: ClassVar[str] = "event"

    verb: str
    how: str = ""
    what: str = ""
    value: str = "fresh"
    place: int = 0
    calls: int = 1

    @classmethod
    def drawn(cls, draw: random.Random, f: WorldFeatures) -> Self:
        """An event that can do something to the world of ``f``."""
        verb = draw.choices(list(VERBS), [weight for _, weight in VERBS.values()])[0]
        what = draw.choice(_targets(f)) if verb in ("write", "new", "back") else ""
        value = draw.choice(("fresh", "fresh", *VALUES)) if verb == "write" else "fresh"
        calls = draw.choices((0, 1, 2), (1, 6, 2))[0]
        return cls(verb, draw.choice(VERBS[verb][0]), what, value, draw.randrange(1000), calls)

    def simpler(self) -> Iterator[Self]:
        """The same with plainer values."""
        plain: dict[str, Any] = {"value": "fresh", "place": 0, "calls": 1}
        for name, value in plain.items():
            if getattr(self, name) != value:
                yield dataclasses.replace(self, **{name: value})

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not the simplest."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The event written down as ``data``."""
        return cls(**data)

    def happen(self, side: Side) -> None:
        """Do it to one side; an error surfaces."""
        _HAPPENINGS[self.verb](self, side)


def _targets(f: WorldFeatures) -> list[str]:
    """What can be written to; prompts and weights are what results are kept for."""
    arguments = ["noise", "history", "extrinsics"] if f.kind == "rollout" else ["latents"]
    if f.has_text:
        arguments += ["text"] * 3
    if f.text == "pooled":
        arguments.append("pooled")
    if f.cache != "none":
        arguments.append("cache")
    if f.numbers == "zero-dim":
        arguments.append("sigma")
    return [*arguments, "parameter", "parameter", "parameter", "buffer"]


def _target(event: Event, side: Side) -> Tensor | None:
    if event.what in ("parameter", "buffer"):
        found = list(side.module.parameters() if event.what == "parameter" else side.module.buffers())
        return found[event.place % len(found)] if found else None
    leaves = pytree.tree_leaves(side.arguments.get(event.what))
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.numel()]
    return found[event.place % len(found)] if found else None


def _write(event: Event, side: Side) -> None:
    target = _target(event, side)
    if target is not None:
        write(target, event.how, event.value, _SEEDS + event.place)


def _module(event: Event, side: Side) -> None:
    with torch.no_grad():
        MODULE_WAYS[event.how](side.module, _SEEDS + event.place)


def _new(event: Event, side: Side) -> None:
    """Another tensor in the place of an argument; ``freed``: which may get the memory of the one before."""
    if event.what not in side.arguments:
        return
    old = side.arguments.pop(event.what)
    if event.how == "held":
        side.stash[event.what] = old
    del old
    gc.collect(0)
    side.arguments[event.what] = arguments_of(side.features, side.sizes, _SEEDS + event.place)[event.what]


def _back(event: Event, side: Side) -> None:
    """The argument that was put aside: prompts of guidance alternate."""
    kept, now = side.stash.get(event.what), side.arguments.get(event.what)
    if isinstance(kept, Tensor) and isinstance(now, Tensor) and (kept.shape, kept.dtype) == (now.shape, now.dtype):
        side.arguments[event.what], side.stash[event.what] = kept, now


def _size(event: Event, side: Side) -> None:
    """Another size of an axis; arguments that do not have it stay the tensors they are."""
    choices = AXES[event.how]
    side.sizes = side.sizes.changed(event.how, choices[event.place % len(choices)])
    made = arguments_of(side.features, side.sizes, _SEEDS + event.place)
    side.arguments.update({name: made[name] for name in SIZED[event.how] if name in made})


def _number(event: Event, side: Side) -> None:
    if event.how in side.arguments:
        choices = _NUMBERS[event.how]
        side.arguments[event.how] = choices[event.place % len(choices)]


def _mode(event: Event, side: Side) -> None:
    side.mode = event.how


def _train(event: Event, side: Side) -> None:
    side.module.train(not side.module.training)


def _dtype(event: Event, side: Side) -> None:
    """Module and arguments move to another dtype and stay there."""
    other = torch.float32 if side.features.dtype == "float64" else torch.float64
    dtype = torch.bfloat16 if event.how == "bfloat16" else other
    side.features = dataclasses.replace(side.features, dtype=str(dtype).removeprefix("torch."))
    side.module.to(dtype)
    side.other = None
    side.arguments = pytree.tree_map_only(
        Tensor, lambda each: each.to(dtype) if each.is_floating_point() else each, side.arguments
    )


def _scribble(event: Event, side: Side) -> None:
    """The caller works in place on what it got; some ways are seen by no version counter."""
    held = [leaf for leaf in side.held[0 if event.how == "first" else -1] if isinstance(leaf, Tensor)]
    if not held:
        return
    leaf = held[event.place % len(held)]
    if event.how in _UNSEEN:
        write(leaf, _UNSEEN[event.how], "fresh", _SEEDS + event.place)
    else:
        with torch.no_grad():
            leaf.mul_(0).add_(7)


_UNSEEN = {"data": "data-copy", "numpy": "numpy", "memory": "memory"}


def _feed(event: Event, side: Side) -> None:
    """The result becomes the next call's argument."""
    name = "noise" if side.features.kind == "rollout" else "latents"
    for leaf in side.held[-1]:
        if isinstance(leaf, Tensor) and leaf.shape == side.arguments[name].shape:
            side.arguments[name] = leaf.detach()
            return


def _bad(event: Event, side: Side) -> None:
    """A call that the model cannot take; the caller catches the error and goes on."""
    if event.how == "middle":
        return _fail(side)
    name = "noise" if side.features.kind == "rollout" else "latents"
    good, side.arguments[name] = side.arguments[name], side.arguments[name][..., :1, :1].flatten()
    try:
        side.run()
    finally:
        side.arguments[name] = good


def _fail(side: Side) -> None:
    """A call that fails when a part of its work is done."""
    if side.features.fails == "none":
        return
    name, bad = ("place", torch.full((1,), 99)) if side.features.fails == "index" else ("fails", True)
    good = getattr(side.module, name)
    setattr(side.module, name, bad)
    try:
        side.run()
    finally:
        setattr(side.module, name, good)


def _together(event: Event, side: Side) -> None:
    if side.features.is_stateless:
        side.run_together(_SEEDS + event.place)


def _thread(event: Event, side: Side) -> None:
    side.threaded = not side.threaded


def _again(event: Event, side: Side) -> None:
    if event.how == "compile":
        side.compiled_again()
    elif event.how == "copy":
        side.copied()
    elif event.how == "dynamo":
        torch._dynamo.reset()
    elif side.is_ours:
        ask(side.call, "reset", side.arguments)


def _look(event: Event, side: Side) -> None:
    """Ask for a report; nobody's numbers change by it."""
    if side.is_ours:
        with MODES[side.mode]():
            ask(side.call, event.how, side.arguments)


def _backward(event: Event, side: Side) -> None:
    leaf = next((each for each in side.held[-1] if isinstance(each, Tensor) and each.requires_grad), None)
    if leaf is not None and leaf.grad_fn is not None:
        leaf.sum().backward()


def _bare(event: Event, side: Side) -> None:
    """The next calls are without a prompt, or have it again."""
    side.arguments["text"], side.stash["text"] = side.stash.get("text"), side.arguments.get("text")


def _want(event: Event, side: Side) -> None:
    """Gradients of an argument, or of the weights, are wanted from here on; or no longer."""
    if event.how == "module":
        wanted = not next(side.module.parameters()).requires_grad
        side.module.requires_grad_(wanted)
        return
    name = "noise" if side.features.kind == "rollout" else "latents"
    if side.arguments[name].is_leaf:
        side.arguments[name].requires_grad_(not side.arguments[name].requires_grad)


def _change(event: Event, side: Side) -> None:
    CHANGES[event.how](side.module)
    side.other = None


_HAPPENINGS: dict[str, Callable[[Event, Side], None]] = {
    "write": _write,
    "module": _module,
    "new": _new,
    "back": _back,
    "size": _size,
    "number": _number,
    "mode": _mode,
    "train": _train,
    "dtype": _dtype,
    "scribble": _scribble,
    "feed": _feed,
    "bad": _bad,
    "together": _together,
    "thread": _thread,
    "again": _again,
    "look": _look,
    "backward": _backward,
    "twin": lambda event, side: side.twin(),
    "drop": lambda event, side: side.held.__setitem__(slice(None), [[] for _ in side.held]),
    "bare": _bare,
    "want": _want,
    "change": _change,
}
