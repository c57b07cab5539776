"""One region of a rewritten program, and a script that runs it by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx

from lightint_compile.errors import StateError
from lightint_compile.passes.ir.fake_values import hint_of
from lightint_compile.reporting.files import written

_HEAD = '''"""The region {name} of {of}, with its inputs: how far Inductor is from running it operator by operator.

Written by lightint {version} under torch {torch}. Run it with Python; it needs torch{needs}.
"""

import math
import operator
from math import inf, nan

import torch
from torch import device
{imports}
NoneType = type(None)

'''

_TAIL = """

if __name__ == "__main__":
    region = {name}()
    with torch.no_grad():
        torch.manual_seed(0)
        expected = region(*inputs())
        torch.manual_seed(0)
        same_draws = {{"fallback_random": True}}
        got = torch.compile(region, backend="inductor", dynamic=False, options=same_draws)(*inputs())
    for number, (one, other) in enumerate(zip(expected, got, strict=True)):
        if not isinstance(one, torch.Tensor):
            print(f"output {{number}}: {{one}} and {{other}}")
            continue
        error = (other.double() - one.double()).norm() / one.double().norm().clamp(min=1e-30)
        print(f"output {{number}}: {{tuple(one.shape)}} {{one.dtype}}, relative error {{error.item():.3g}}")
"""

_RANDOM = '''
def drawn(shape, stride, dtype, place):
    """A tensor of this form: normal numbers, or zeros where the dtype has none."""
    made = torch.empty_strided(shape, stride, dtype=dtype, device=place)
    return made.normal_() if dtype.is_floating_point else made.zero_()


def inputs():
    """What the region is called with, drawn from a fixed seed."""
    torch.manual_seed(0)
    return ({values})
'''

_KEPT = '''
def inputs():
    """What the region was called with."""
    return torch.load(__file__ + ".inputs.pt", weights_only=True)
'''


@dataclass(frozen=True)
class Region:
    """A region.

    Attributes:
        name: as the root calls it.
        module: its graph in normal form.
        of: the name of the program.
        args: what it was called with; ``None`` where it did not run.
    """

    name: str
    module: fx.GraphModule
    of: str
    args: tuple[Any, ...] | None = None

    def write_repro(self, path: str | Path) -> Path:
        """Write a script that runs the region alone, by Inductor and operator by operator, and compares.

        Inputs that are known are written beside it (``.inputs.pt``); else the script draws some of the same form.

        Raises:
            StateError: the graph holds tensors of its own, which a script cannot state.
            InputError: the file cannot be written.
        """
        path = written(path, self.script())
        if self.args is not None:
            torch.save(tuple(map(_plain, self.args)), f"{path}.inputs.pt")
        return path

    def script(self) -> str:
        """The text of the script."""
        from lightint_compile import __version__

        own = any("lightint." in str(node.target) for node in self.module.graph.nodes)
        head = _HEAD.format(
            name=self.name,
            of=self.of,
            version=__version__,
            torch=torch.__version__,
            needs=" and lightint, whose operators it calls" if own else "",
            imports="import lightint_compile.kernels  # registers its operators\n" if own else "",
        )
        title = self.name.title().replace("_", "")
        body = "\n\n".join(_classes(title, self.module))
        inputs = _RANDOM.format(values=self._values()) if self.args is None else _KEPT
        return head + "\n" + body + "\n" + inputs + _TAIL.format(name=title)

    def _values(self) -> str:
        placeholders = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        return "".join(f"\n        {_drawn(node.meta.get('val'))}," for node in placeholders) + "\n    "


def _classes(title: str, module: fx.GraphModule) -> Iterator[str]:
    """The graph as a module, behind those of the graphs that it holds."""
    held = {name: child for name, child in module.named_children() if isinstance(child, fx.GraphModule)}
    attributes = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"} - set(held)
    if attributes:
        why = f"it holds {', '.join(sorted(attributes))}"
        raise StateError("the region cannot be written as a script", why=why, fix="give these tensors as inputs")
    for name, child in held.items():
        yield from _classes(f"{title}{name.title().replace('_', '')}", child)
    made = "".join(f"\n        self.{name} = {title}{name.title().replace('_', '')}()" for name in held)
    start = f"    def __init__(self):\n        super().__init__(){made}\n\n" if held else ""
    yield f"class {title}(torch.nn.Module):\n{start}{_forward(module)}"


def _forward(module: fx.GraphModule) -> str:
    source = str(module.graph.python_code(root_module="self").src)
    plain = re.sub(r";  \w+(?: = \w+)* = None(?= *(?:#.*)?$)", "", source, flags=re.MULTILINE)
    return "\n".join(f"    {line}".rstrip() for line in plain.strip().splitlines())


def _drawn(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        shape, stride = (tuple(int(hint_of(size)) for size in sizes) for sizes in (value.shape, value.stride()))
        place = "cpu" if value.device.type == "meta" else str(value.device)
        return f"drawn({shape}, {stride}, {value.dtype}, {place!r})"
    if isinstance(value, torch.SymInt):
        return str(int(hint_of(value)))
    return repr(value)


def _plain(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
