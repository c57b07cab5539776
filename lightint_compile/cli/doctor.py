"""Is this machine able to compile? Each check is one line that says what was found and what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from lightint_compile.errors import LightintError, one_line

if TYPE_CHECKING:
    import torch

    from lightint_compile.kernels.cost import Rates
    from lightint_compile.kernels.dispatch import Choice


class State(StrEnum):
    """How a check came out; only ``BROKEN`` keeps lightint from running."""

    GOOD = "ok"
    SLOWER = "slower"
    ABSENT = "absent"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, how it stands, and what that means or needs."""

    subject: str
    state: State
    detail: str

    @property
    def broken(self) -> bool:
        """Whether lightint cannot run until this is mended."""
        return self.state is State.BROKEN

    def __str__(self) -> str:
        return f"{self.state:<7} {self.subject:<14} {self.detail}"


def examine() -> list[Finding]:
    """Every check, in the order in which one would mend them."""
    return [finding for check in _CHECKS for finding in check()]


def _python() -> Iterator[Finding]:
    yield Finding("python", State.GOOD, f"{platform.python_version()} on {platform.platform()}")


def _torch() -> Iterator[Finding]:
    import torch

    from lightint_compile import torch_compat, torch_private

    fits, lost = torch_compat.is_supported(), torch_private.missing()
    oldest, newest = (".".join(map(str, version)) for version in (torch_compat.OLDEST, torch_compat.NEWEST))
    detail = str(torch.__version__)
    detail += "" if fits else f": outside of {oldest} to {newest}, the versions that are tested"
    detail += f"; it lacks {', '.join(lost)}" if lost else ""
    yield Finding("torch", State.GOOD if fits and not lost else State.BROKEN, detail)


def _backend() -> Iterator[Finding]:
    entries = importlib.metadata.entry_points(group="torch_dynamo_backends")
    if "lightint" in {entry.name for entry in entries}:
        yield Finding("backend", State.GOOD, 'torch.compile(model, backend="lightint") is registered')
    else:
        yield Finding("backend", State.BROKEN, "its entry point is not installed: run pip install -e . again")


def _compiler() -> Iterator[Finding]:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        found = str(get_cpp_compiler())
    except Exception as error:
        why = str(error).strip().splitlines()[0]
        yield Finding("C++ compiler", State.ABSENT, f'{why}; install g++ or clang++, or use delegate="eager"')
        return
    location = shutil.which(found)
    state = State.GOOD if location else State.ABSENT
    yield Finding("C++ compiler", state, location or f'{found} is not on the path; or use delegate="eager"')


def _triton() -> Iterator[Finding]:
    if importlib.util.find_spec("triton") is None:
        yield Finding("triton", State.ABSENT, "needed for the GPU kernels only: pip install triton")
    else:
        yield Finding("triton", State.GOOD, importlib.metadata.version("triton"))


def _device() -> Iterator[Finding]:
    import torch

    yield Finding("cpu", State.GOOD, f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding("cuda", State.ABSENT, "no GPU is visible: everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        yield Finding(f"cuda:{index}", State.GOOD, f"{device.name}, sm_{device.major}{device.minor}, {memory}")


def _attention() -> Iterator[Finding]:
    """Which kernel runs sparse attention here, and how dense and sparse are weighed."""
    from lightint_compile.kernels import cost

    device, kernel = _best_kernel()
    yield Finding("kernel", _speed_of(device, kernel), f"{_KERNELS[str(kernel)]}: {kernel.reason}")
    if kernel == "reference":
        return
    origin, rates = cost.origin_of(device, str(kernel)), cost.rates_of(device, str(kernel))
    advice = "" if origin is cost.Origin.MEASURED else "; lightint doctor --measure makes sure"
    yield Finding("attention", State.GOOD, f"{_described(rates)}, {origin}{advice}")


_KERNELS = {
    "hopper": "the sm_90 kernel (Gluon)",
    "portable": "the portable kernel (Triton)",
    "gather": "the CPU's",
    "reference": "none, sites stay dense",
}


def _best_kernel() -> tuple[torch.device, Choice]:
    """The device, and what runs half-precision attention with a head_dim of 128 there (float32 on a CPU)."""
    import torch

    from lightint_compile.kernels import dispatch

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return device, dispatch.implementation(torch.empty((1, 1, 0, 128), dtype=dtype, device=device))


def _speed_of(device: torch.device, kernel: Choice) -> State:
    import torch

    if kernel == "reference":
        return State.ABSENT
    best = device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0) or kernel == "hopper"
    return State.GOOD if best else State.SLOWER


def measure() -> Finding:
    """Measure dense and sparse attention on this machine's device, a few seconds; from now on these rates decide."""
    import torch

    from lightint_compile.kernels import cost

    rates = cost.measure("cuda" if torch.cuda.is_available() else "cpu")
    return Finding("measured", State.GOOD, f"{_described(rates)}; skipping pays from {_break_even(rates)}")


def _described(rates: Rates) -> str:
    return (
        f"dense {rates.dense_rate:.3g} and sparse {rates.sparse_rate:.3g} TFLOP/s, "
        f"a sparse call {rates.sparse_fixed:.0f} us at least"
    )


def _break_even(rates: Rates) -> str:
    """The shortest self-attention of 16 heads of 128 for which keeping 0.3 of the keys is expected to pay."""
    from lightint_compile.kernels import cost

    for exponent in range(9, 17):
        shape = (16, 128, 2**exponent, 2**exponent)
        if cost.sparse_time(rates, *shape, 0.3) < cost.MARGIN * cost.dense_time(rates, *shape):
            return f"{2**exponent} tokens at density 0.3"
    return "no length up to 65536 tokens at density 0.3"


def _extras() -> Iterator[Finding]:
    if importlib.util.find_spec("diffusers") is None:
        yield Finding("diffusers", State.ABSENT, "optional: third-party transformers")
    else:
        yield Finding("diffusers", State.GOOD, importlib.metadata.version("diffusers"))


def _extensions() -> Iterator[Finding]:
    """What other packages add to lightint; one that cannot be used is in nobody's way but its own."""
    from lightint_compile.cli.extending import KINDS

    for kind in KINDS:
        for each, found in kind.found():
            broken = isinstance(found, LightintError)
            detail = one_line(found) if broken else f"a {kind.name} from {each.origin}"
            yield Finding(each.name, State.ABSENT if broken else State.GOOD, detail)


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _torch,
    _backend,
    _compiler,
    _triton,
    _device,
    _attention,
    _extras,
    _extensions,
)
