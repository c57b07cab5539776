"""What a peer's rule is: hooks on the denoise stage of an uncompiled model, cleared for every rollout and chunk.

A rule acts as its authors' code does: it decides on the host, from tensors that it reads there.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

from lightint_compile.errors import OptionError, StateError, did_you_mean
from lightint_compile.models.world_model import WorldModel
from lightint_compile.runtime import device_to_host


class Rule(Protocol):
    """A rule with its settings."""

    sweep: ClassVar[tuple[str, ...]]
    """Its settings along the Pareto line, each as `option=value,...`; the published default is the empty one."""

    def applied(self, model: WorldModel, module: nn.Module) -> AbstractContextManager[None]:
        """The module follows the rule inside of this context."""
        ...

    def begin(self) -> None:
        """A new rollout begins: nothing of the last one is known."""
        ...

    @property
    def computed(self) -> int | None:
        """Denoising steps that were computed since `begin`; `None` for a rule that leaves them alone."""
        ...


@dataclasses.dataclass
class Configured:
    """Fields of a dataclass as options by name."""

    @classmethod
    def configured(cls, options: Mapping[str, Any]) -> Self:
        """With these settings instead of the published ones.

        Raises:
            OptionError: one that the rule does not have, or that is no number.
        """
        known = [field.name for field in dataclasses.fields(cls) if field.init]
        for name, value in options.items():
            if name not in known:
                fix = did_you_mean(name, known)
                raise OptionError(f"{cls.__name__} has no setting {name!r}", where="--variants", fix=fix)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise OptionError(f"{name}={value!r} is no number", where="--variants", fix="for example threshold=0.1")
        return cls(**options)


@dataclasses.dataclass
class StepRule(Configured, ABC):
    """A rule that looks at one denoising step after another; subclasses say what they do with the call of a step."""

    sweep: ClassVar[tuple[str, ...]] = ("",)
    computed: int = dataclasses.field(default=0, init=False)
    _step: int = dataclasses.field(default=0, init=False)
    _steps: int = dataclasses.field(default=1, init=False)

    def begin(self) -> None:
        """Nothing is known of any chunk."""
        self.computed = self._step = 0
        self.begin_chunk()

    def begin_chunk(self) -> None:
        """The first step of a chunk comes."""

    @abstractmethod
    def step(self, number: int, compute: Callable[[], Tensor], latents: Tensor) -> Tensor:
        """The velocity of step `number` of a chunk; `compute` calls the model."""

    def hooked(self, model: WorldModel, module: nn.Module) -> AbstractContextManager[None]:
        """Further hooks of a rule, on blocks for example."""
        return _nothing()

    @contextmanager
    def applied(self, model: WorldModel, module: nn.Module) -> Iterator[None]:
        """See `Rule.applied`."""
        self._steps = model.spec.denoising_steps
        owner, method = denoise_stage(model, module)
        original = getattr(owner, method)

        def ruled(latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            number = self._step % self._steps
            if number == 0:
                self.begin_chunk()
            self._step += 1

            def compute() -> Tensor:
                self.computed += 1
                made: Tensor = original(latents, *args, **kwargs)
                return made

            return self.step(number, compute, latents)

        with self.hooked(model, module), replaced(owner, method, ruled):
            yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def replaced(owner: nn.Module, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """`owner.method` is `function` inside of this context."""
    before = vars(owner).get(method)
    setattr(owner, method, function)
    try:
        yield
    finally:
        delattr(owner, method) if before is None else setattr(owner, method, before)


def denoise_stage(model: WorldModel, module: nn.Module) -> tuple[nn.Module, str]:
    """The owner and the name of the method that makes one denoising step; raises as `stage_of`."""
    return stage_of(model, module, "denoise")


def stage_of(model: WorldModel, module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The owner and the name of the method that is a stage.

    Raises:
        StateError: the model does not name it.
    """
    stages = model.stages(module)
    if name not in stages:
        raise StateError("the rule has no stage to act on", where=str(model), why=f"it names no stage {name!r}")
    return stages[name]


def number(value: Tensor) -> float:
    """A tensor of one element on the host: the wait that a rule costs, counted with those of the driver."""
    return float(device_to_host.to_host(value))


def relative_l1(new: Tensor, old: Tensor) -> Tensor:
    """`mean|new - old| / mean|old|`, the change that most rules read."""
    return (new - old).abs().mean() / old.abs().mean()
