"""Whether the results of a call are good: by their distance from the eager ones, or by a command of the user's."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from lightint_compile.errors import InputError

OUTPUTS = "LIGHTINT_OUTPUTS"
"""Environment variable in which a verdict finds the file with the results."""


class Judge(Protocol):
    """Says whether results are good."""

    def says(self, exact: Any, got: Any) -> tuple[bool, str]:
        """Whether ``got`` is good, and why, in a few words."""


@dataclass(frozen=True)
class Tolerance:
    """Good is what is this near to the eager results.

    Attributes:
        relative: largest L2 norm of the difference of an output over that of the eager output.
    """

    relative: float = 1e-3

    def says(self, exact: Any, got: Any) -> tuple[bool, str]:
        """See :class:`Judge`."""
        pairs = pytree.tree_leaves(exact), pytree.tree_leaves(got)
        found = distance(*pairs)
        return found <= self.relative, f"relative error {found:.3g}{self._since(*pairs)}"

    def _since(self, exact: Sequence[Any], got: Sequence[Any]) -> str:
        """Of several outputs, such as chunks, the first that is not good."""
        if len(exact) != len(got):
            return ""
        bad = [number for number, pair in enumerate(zip(exact, got, strict=True)) if _of_one(*pair) > self.relative]
        return f", from output {bad[0]} on" if bad and len(exact) > 1 else ""


@dataclass(frozen=True)
class Verdict:
    """Good is what a command says: it exits with 0 where the results are good, and with 1 where they are not.

    It finds the results, as ``torch.load`` reads them, in the file that ``LIGHTINT_OUTPUTS`` names.

    Attributes:
        command: run by the shell.
    """

    command: str

    def says(self, exact: Any, got: Any) -> tuple[bool, str]:
        """See :class:`Judge`.

        Raises:
            InputError: the command ends with anything but 0 or 1.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outputs.pt"
            torch.save(got, path)
            done = subprocess.run(
                self.command, shell=True, env={**os.environ, OUTPUTS: str(path)}, capture_output=True, text=True
            )
        if done.returncode not in (0, 1):
            why = f"it exits with {done.returncode}: {(done.stderr or done.stdout).strip()[-200:]}"
            raise InputError("the verdict cannot be taken", where=self.command, why=why, fix="exit with 0 or 1")
        return done.returncode == 0, f"the verdict is {'good' if done.returncode == 0 else 'bad'}"


def distance(exact: Sequence[Any], got: Sequence[Any]) -> float:
    """The largest relative error of an output; infinite where shapes, or values that are no floats, differ."""
    if len(exact) != len(got):
        return float("inf")
    return max((_of_one(one, other) for one, other in zip(exact, got, strict=True)), default=0.0)


def _of_one(exact: Any, got: Any) -> float:
    if not isinstance(exact, Tensor) or not isinstance(got, Tensor):
        return 0.0 if type(exact) is type(got) and exact == got else float("inf")
    if exact.shape != got.shape or exact.dtype != got.dtype:
        return float("inf")
    if not exact.is_floating_point() or not exact.numel():
        return 0.0 if torch.equal(exact, got) else float("inf")
    one, other = exact.detach().double(), got.detach().to(exact.device).double()
    same = (one == other) | (one.isnan() & other.isnan())
    error = torch.where(same, torch.zeros_like(one), other - one).norm()
    found = float(error / one[one.isfinite()].norm().clamp(min=1e-30))
    return found if found == found else float("inf")
