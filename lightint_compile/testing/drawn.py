"""Plain data drawn from a table of choices: written as JSON, read back, and made simpler to shrink."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from lightint_compile.errors import OptionError, did_you_mean


class Drawn:
    """What frozen dataclasses of choices share; a field's simplest value is its default.

    Attributes:
        CHOICES: the values of every field that shrinking may change; the first one is the simplest.
        WHAT: what a value of the class is, for messages.
    """

    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]]
    WHAT: ClassVar[str] = "model"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The value written down as ``data``; a field that is not given is the simplest.

        Raises:
            OptionError: an unknown field, or a value that it does not have.
        """
        for name, value in data.items():
            if name not in cls.CHOICES and name != "seed":
                raise OptionError(f"a {cls.WHAT} has no feature {name!r}", fix=did_you_mean(name, cls.CHOICES))
            if name in cls.CHOICES and value not in cls.CHOICES[name]:
                raise OptionError(f"{value!r} is not a value of {name}", why=f"known: {cls.CHOICES[name]}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not the simplest."""
        simplest = type(self)()
        data = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in data.items() if value != getattr(simplest, name)}

    def simpler(self) -> Iterator[Self]:
        """Every value with one field at its simplest."""
        for name, choices in self.CHOICES.items():
            if getattr(self, name) != choices[0]:
                yield dataclasses.replace(self, **{name: choices[0]})  # type: ignore[type-var]
