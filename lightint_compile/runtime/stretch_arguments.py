"""Arguments of a stretch: what a recording bakes in of them, how one is copied, and results that are views of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightint_compile.runtime.staying import Staying, memory_of

Source = tuple[int, int]
"""The number of a recording and which of the tensors it writes to; zeros for none."""


class Kinds:
    """Which arguments of a stretch are what; the same in every call.

    Attributes:
        numbers: positions of what is no tensor.
        sized: positions of tensors that are no weights.
        tensors: positions of all tensors.
        weights: positions of weights.
    """

    def __init__(self, args: Sequence[Any]) -> None:
        self.numbers = [at for at, value in enumerate(args) if not isinstance(value, Tensor)]
        self.tensors = [at for at, value in enumerate(args) if isinstance(value, Tensor)]
        weights = {at for at in self.tensors if isinstance(args[at], torch.nn.Parameter)}
        self.sized = [at for at in self.tensors if at not in weights]
        self.weights = weights
        self._of_weights = [place for place, at in enumerate(self.tensors) if at in weights]

    def places(self, args: Sequence[Any]) -> list[Any]:
        """The address of each tensor."""
        return [args[at].data_ptr() for at in self.tensors]

    def named(self, args: Sequence[Any], source_of: Callable[[Tensor], Source], staying: Staying) -> list[Any]:
        """The same, but what all ranks call those that stay and those that recordings gave."""
        places = self.places(args)
        for place, at in enumerate(self.tensors):
            if at in self.weights:
                continue
            source, serial = source_of(args[at]), staying.serial_of(args[at])
            if source[0] or serial is not None:
                places[place] = (source, serial, args[at].storage_offset())
        return places

    def form(
        self, args: Sequence[Any], places: Sequence[Any], source_of: Callable[[Tensor], Source]
    ) -> tuple[Any, ...]:
        """What a recording bakes in of its arguments, but for where they lie; first the recordings that gave them."""
        sources = tuple(source_of(args[at])[0] for at in self.sized)
        numbers = [(type(args[at]), _exactly(args[at])) for at in self.numbers]
        sizes = [(args[at].shape, args[at].stride(), args[at].dtype) for at in self.sized]
        weights = hash(tuple(places[place] for place in self._of_weights))
        return (sources, weights, *numbers, *sizes)


class View(NamedTuple):
    """A result that shows an argument's memory: made of the argument in every play, and held by nobody."""

    argument: int
    is_whole: bool
    place: tuple[Any, ...]

    @classmethod
    def found(cls, value: Any, args: Sequence[Any], fixed: Sequence[int]) -> View | None:
        """How a result shows one of the arguments that are read where they lie; ``None`` for one that was made.

        Raises:
            ValueError: it shows it as another kind of numbers.
        """
        memory = memory_of(value) if isinstance(value, Tensor) else 0
        lent = [at for at in fixed if memory and memory_of(args[at]) == memory]
        if not lent:
            return None
        same = next((at for at in lent if args[at] is value), None)
        if same is not None:
            return cls(same, True, ())
        argument = args[lent[0]]
        if (value.dtype, *_bits(value)) != (argument.dtype, *_bits(argument)):
            raise ValueError("a result shows an argument as another kind of numbers")
        behind = value.storage_offset() - argument.storage_offset()
        return cls(lent[0], False, (value.shape, value.stride(), behind))

    def of(self, args: Sequence[Any]) -> Tensor:
        """The result in a call with these arguments."""
        argument: Tensor = args[self.argument]
        if self.is_whole:
            return argument
        shape, strides, behind = self.place
        return argument.as_strided(shape, strides, argument.storage_offset() + behind)


def _bits(value: Tensor) -> tuple[bool, bool]:
    """Whether a tensor is a conjugate, or a negative, that nobody has computed."""
    return value.is_conj(), value.is_neg()


def _exactly(value: Any) -> Any:
    """A number as what is equal only to itself: not 0.0 to -0.0, and NaN to NaN."""
    return value if isinstance(value, (int, str, type(None))) else repr(value)


def once(value: Tensor) -> Tensor:
    """What an expanded tensor repeats, once."""
    for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        value = value.narrow(dim, 0, 1) if size > 1 and not stride else value
    return value


def copied(value: Tensor) -> Tensor:
    """A copy that is laid out as the tensor is."""
    with torch.inference_mode(False), torch.no_grad():
        copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        once(copy).copy_(once(value))
    return copy
