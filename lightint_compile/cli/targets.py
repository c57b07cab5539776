"""What the command line is pointed at: a model by name, or a factory of the user's; and its options as text."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from lightint_compile.cli.failing import user_call
from lightint_compile.errors import DeviceError, InputError, OptionError, did_you_mean, told
from lightint_compile.models import registry

if TYPE_CHECKING:
    from lightint_compile.models.world_model import WorldModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A module (or function) and one call of it.

    Attributes:
        rollout: makes the calls of a rollout of what it is given, and gives their results; ``None`` unless asked for.
    """

    module: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    rollout: Callable[[Callable[..., Any]], Any] | None = None


def resolve_rollout(target: str, chunks: int) -> Subject:
    """The subject of ``FAMILY:SIZE`` with a rollout of so many chunks: a turn to the left and back.

    Raises:
        InputError: the target is a factory, of whose rollouts nothing is known.
        DeviceError: the model is too large for a CPU.
    """
    if not registry.is_family(target.partition(":")[0]):
        fix = "name a FAMILY:SIZE, or call lightint_compile.bisecting.bisect(..., rollout=...)"
        raise InputError("how to roll a factory's module out is not known", where=target, fix=fix)
    model = registry.world_model(target)
    if model.needs_gpu:
        raise DeviceError(f"{target} needs a CUDA device", where="--chunks", fix=f"{registry.TINY} runs anywhere")
    from lightint_compile.models.world_model import turn_and_back

    path = model.camera_path(turn_and_back(model.spec, model.spec.frames(chunks)))
    scene = model.scene()
    return replace(_of_model(model), rollout=lambda call: [each.latents for each in model.rollout(call, scene, path)])


def resolve(target: str) -> Subject:
    """The subject of ``FAMILY:SIZE`` or ``package.module:factory``; the factory returns (module, args, kwargs).

    The current folder is importable, as under ``python -m``. A model that is too large for a CPU lives on the meta
    device: no weights.
    """
    if registry.is_family(target.partition(":")[0]):
        return _of_model(registry.world_model(target))
    module_name, colon, attribute = target.partition(":")
    if not colon or not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise _unknown(target, "it is not of the form package.module:factory")
    return _from_factory(target, module_name, attribute)


def _of_model(model: WorldModel) -> Subject:
    import torch

    device, dtype = ("meta", torch.bfloat16) if model.needs_gpu else ("cpu", torch.float32)
    inputs = model.example_inputs(model.example_history, device, dtype)
    return Subject(model.module(device, dtype), tuple(inputs.values()), {})


def _from_factory(target: str, module_name: str, attribute: str) -> Subject:
    factory = _factory(target, module_name, attribute)
    from lightint_compile.torch_marks import uncompiled

    with user_call(target):
        made = factory()
    if isinstance(made, tuple) and len(made) == 3:
        subject, args, kwargs = made
        if callable(subject) and isinstance(args, (tuple, list)) and isinstance(kwargs, Mapping):
            return Subject(uncompiled(subject), tuple(args), dict(kwargs))
    raise InputError("the factory does not return a call", where=target, why=f"it returned {_shown(made)}", fix=_CALL)


def _factory(target: str, module_name: str, attribute: str) -> Callable[[], Any]:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _unknown(target, f"{module_name} cannot be imported: {told(error)}") from error
    if not hasattr(module, attribute):
        fix = did_you_mean(attribute, [name for name in vars(module) if not name.startswith("_")])
        raise InputError(f"{module_name} has no {attribute!r}", where=target, fix=fix)
    factory = getattr(module, attribute)
    if not callable(factory):
        why = f"it is {_shown(factory)}"
        raise InputError(f"{attribute!r} is no factory", where=target, why=why, fix=f"name a function: {_CALL}")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        fix = "give it defaults, or name a function without arguments"
        raise InputError("the factory wants arguments", where=target, why=str(error), fix=fix) from error
    except ValueError:
        log.debug("%s tells no signature", target)
    return cast(Callable[[], Any], factory)


def _shown(value: Any) -> str:
    """A value by its type, a tuple by the types in it."""
    if isinstance(value, tuple):
        return f"({', '.join(type(each).__name__ for each in value)})"
    return type(value).__name__


_CALL = "return (module, args, kwargs), for example (model, (latents,), {})"


def _unknown(target: str, why: str) -> InputError:
    fix = f"{did_you_mean(target, registry.model_names())} or name package.module:factory"
    return InputError(f"there is no target {target!r}", where="TARGET", why=why, fix=fix)


def parse_options(preset: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The options that ``--preset`` and ``--option KEY=VALUE`` spell; a value is JSON where it parses as JSON."""
    options: dict[str, Any] = {"preset": preset}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"{pair!r} is not KEY=VALUE", where="--option", fix="for example density=0.3")
        options[key.strip()] = _value(value)
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_dynamic(pairs: Sequence[str]) -> dict[str, list[int]] | None:
    """Argument name to symbolic dimensions, from ``history=2`` or ``tokens=0,1``; ``None`` when there are none."""
    dynamic: dict[str, list[int]] = {}
    for pair in pairs:
        name, _, dimensions = pair.partition("=")
        try:
            axes = [int(dimension) for dimension in dimensions.split(",")]
        except ValueError:
            fix = "for example history=2"
            raise OptionError(f"{pair!r} is not ARGUMENT=DIMENSION", where="--dynamic", fix=fix) from None
        dynamic.setdefault(name.strip(), []).extend(axes)
    return dynamic or None
