"""What can be judged, by name: the model as it is, its lower bounds, noise floors, presets, and the peers' rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightint_compile.bench.rollout_job import variant_options
from lightint_compile.errors import OptionError, did_you_mean
from lightint_compile.models.world_model import WorldModel
from lightint_compile.options import LightintOptions
from lightint_compile.options.presets import PRESETS, preset_names

from .peers import PEERS
from .peers.rule import Rule
from .true_world import TrueWorld

EAGER = "eager"
"""What the others are compared with; always run, and first."""

OTHER_SEED = 7919
"""Added to the seed of the noise by `other-seed`."""


@dataclass
class Opened:
    """A variant ready to roll out.

    Attributes:
        model: whose `rollout` calls it.
        call: takes the arguments of the model's module.
        module: the uncompiled module.
        dtype: of latents and weights.
        rule: of a peer, whose state a new rollout clears; else `None`.
        compiles: whether first calls compile.
    """

    model: WorldModel
    call: Callable[..., Tensor]
    module: nn.Module
    dtype: torch.dtype
    noise: int = 0
    rule: Rule | None = None
    compiles: bool = False


@dataclass(frozen=True)
class Setup:
    """What all variants share."""

    world: TrueWorld
    device: torch.device
    dtype: torch.dtype
    delegate: str | None = None

    def module(self, model: WorldModel, dtype: torch.dtype | None = None) -> nn.Module:
        """The module of a model on the device."""
        return model.module(self.device, dtype or self.dtype)


Open = Callable[[Setup, ExitStack], Opened]


def _plain(model_of: Callable[[TrueWorld], WorldModel]) -> Open:
    def opened(setup: Setup, stack: ExitStack) -> Opened:
        model = model_of(setup.world)
        module = setup.module(model)
        return Opened(model, module, module, setup.dtype)

    return opened


def _other_seed(setup: Setup, stack: ExitStack) -> Opened:
    return dataclasses.replace(_plain(lambda world: world.model)(setup, stack), noise=OTHER_SEED)


def _other_dtype(setup: Setup, stack: ExitStack) -> Opened:
    dtype = torch.bfloat16 if setup.dtype == torch.float32 else torch.float32
    module = setup.module(setup.world.model, dtype)
    return Opened(setup.world.model, module, module, dtype)


def _inductor(setup: Setup, stack: ExitStack) -> Opened:
    module = setup.module(setup.world.model)
    call = torch.compile(module, backend=setup.delegate or "inductor", fullgraph=True)
    return Opened(setup.world.model, call, module, setup.dtype, compiles=True)


def _kept() -> str:
    return str(dataclasses.replace(PRESETS["context"], settings={"context-reuse": f"age={KEPT_AGE},drift=none"}))


KEPT_AGE = 8
"""Chunks for which `kv-reuse` keeps keys and values."""


def _preset(options: dict[str, Any], steps: int | None = None) -> Open:
    def opened(setup: Setup, stack: ExitStack) -> Opened:
        model = setup.world.model if steps is None else setup.world.with_steps(steps)
        module = setup.module(model)
        given = options if setup.delegate is None else {**options, "delegate": setup.delegate}
        call = torch.compile(module, backend="lightint", fullgraph=True, options=given)
        return Opened(model, call, module, setup.dtype, compiles=True)

    return opened


PLAIN: Mapping[str, tuple[Open, str]] = {
    EAGER: (_plain(lambda world: world.model), "the model as it is"),
    "no-memory": (_plain(lambda world: world.without_memory()), "it looks back at the newest chunk alone"),
    "no-retrieval": (_plain(lambda world: world.without_retrieval()), "at the first and the newest frames alone"),
    "other-seed": (_other_seed, "noise floor: another seed of the noise"),
    "other-dtype": (_other_dtype, "noise floor: bfloat16 for float32, or float32"),
    "inductor": (_inductor, "torch.compile's own backend"),
    "kv-reuse": (_preset({"passes": _kept()}), "context, keys and values kept for 8 chunks, unguarded"),
    "steps-1": (_plain(lambda world: world.with_steps(1)), "a shorter schedule"),
    "steps-2": (_plain(lambda world: world.with_steps(2)), "a shorter schedule"),
    "steps-3": (_plain(lambda world: world.with_steps(3)), "a shorter schedule"),
}
"""Variants that are no preset and no peer's rule; what each is."""


@dataclass(frozen=True)
class Variant:
    """A variant by its name as it was asked for, `name`, `name:option=value,...` or `preset+pass`."""

    name: str
    open: Open

    @contextmanager
    def opened(self, setup: Setup) -> Iterator[Opened]:
        """Ready to roll out; what it compiled is forgotten afterwards."""
        with ExitStack() as stack:
            yield self.open(setup, stack)
        torch._dynamo.reset()


def variant_of(text: str) -> Variant:
    """The variant called `text`.

    Raises:
        OptionError: there is none, with a hint; or an option that it does not take.
    """
    options = variant_options(text)
    name = options.pop("preset")
    if name in PLAIN and not options:
        return Variant(text, PLAIN[name][0])
    if name in PEERS:
        return Variant(text, _ruled(PEERS[name].configured(options)))
    if name in preset_names():
        steps = _steps(options.pop("steps", None))
        LightintOptions.from_mapping({"preset": name, **options})
        return Variant(text, _preset({"preset": name, **options}, steps))
    if name in PLAIN:
        raise OptionError(
            f"{name} takes no options", where="--variants", why=f"{text!r} gives some", fix=f"write {name}"
        )
    raise OptionError(f"there is no variant {name!r}", where="--variants", fix=did_you_mean(name, variant_names()))


def _steps(given: Any) -> int | None:
    """The denoising steps of a preset's variant; those of the model where none are given."""
    if given is None or (type(given) is int and given > 0):
        return given
    raise OptionError(f"there is no schedule of {given} steps", where="--variants", fix="give 1 or more, as steps=2")


def variant_names() -> list[str]:
    """All variants without options."""
    return [*PLAIN, *preset_names(), *PEERS]


def variants_of(texts: Sequence[str]) -> list[Variant]:
    """The variants, each once, `eager` in front; `peers` and `sweep` stand for many.

    Raises:
        OptionError: see `variant_of`.
    """
    spelt = [each for text in texts for each in GROUPS.get(text, lambda text=text: [text])()]  # type: ignore[misc]
    return [variant_of(text) for text in dict.fromkeys([EAGER, *spelt])]


def _peers() -> list[str]:
    return ["inductor", "published", "kv-reuse", "steps-1", "steps-2", "steps-3", *PEERS]


def _sweep() -> list[str]:
    return [f"{name}:{setting}" if setting else name for name, rule in PEERS.items() for setting in rule.sweep]


GROUPS: Mapping[str, Callable[[], list[str]]] = {"peers": _peers, "sweep": _sweep}
"""Names that stand for many variants: every peer by its published defaults, and every peer at each of its settings."""


def _ruled(rule: Rule) -> Open:
    def opened(setup: Setup, stack: ExitStack) -> Opened:
        module = setup.module(setup.world.model)
        stack.enter_context(rule.applied(setup.world.model, module))
        return Opened(setup.world.model, module, module, setup.dtype, rule=rule)

    return opened
