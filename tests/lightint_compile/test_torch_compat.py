"""Versions of torch: which are supported, and that every private name in use is declared, with a reason, and there."""

from __future__ import annotations

import ast
import re
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightint_compile import torch_compat, torch_private
from lightint_compile.torch_compat import CallSetting

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("lightint_compile", "passes", "kernels", "models")


def names_in(tree: ast.AST) -> Iterator[str]:
    """Full paths of torch's names that a file imports or reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield attribute_path(node)


def attribute_path(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{attribute_path(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_private(name: str) -> bool:
    """``torch._x`` or ``torch.x._y``; operators are public whatever they are called."""
    parts = name.split(".")
    return parts[0] == "torch" and parts[1:2] != ["ops"] and any(re.match(r"_[^_]", part) for part in parts)


def declared(name: str) -> bool:
    return any(
        f"{name}.".startswith(f"{known}.") or f"{known}.".startswith(f"{name}.") for known in torch_private.PRIVATE
    )


def test_every_private_name_of_torch_in_use_is_declared_with_its_reason() -> None:
    undeclared = {
        f"{name} in {path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in names_in(ast.parse(path.read_text()))
        if path.name != "torch_compat.py" and is_private(name) and not declared(name) and not is_operator(name)
    }
    assert not undeclared, f"declare in torch_private.PRIVATE, with the reason: {sorted(undeclared)}"
    assert all(len(reason) > 10 for reason in torch_private.PRIVATE.values())


def is_operator(name: str) -> bool:
    """A function that ATen defines, such as ``torch._foreach_copy_``."""
    return hasattr(torch.ops.aten, name.removeprefix("torch."))


def test_this_torch_has_every_declared_name() -> None:
    assert torch_private.missing() == []


def test_a_name_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"torch._C.no_such_name": "", "torch._no_such_module.name": "", "torch.nn.Linear": ""}
    monkeypatch.setattr(torch_private, "PRIVATE", gone)
    assert torch_private.missing() == ["torch._C.no_such_name", "torch._no_such_module.name"]


def test_the_supported_versions_are_those_of_the_requirements() -> None:
    (wanted,) = [
        line
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if line.startswith("torch")
    ]
    (first, beyond) = (tuple(map(int, found)) for found in re.findall(r"(\d+)\.(\d+)", wanted))
    assert first == torch_compat.OLDEST and beyond == (torch_compat.NEWEST[0], torch_compat.NEWEST[1] + 1)


@pytest.mark.parametrize(
    ("version", "found"),
    [("2.11.0+cu130", (2, 11)), ("2.13.0+cpu", (2, 13)), ("2.15.0a0+git12ab", (2, 15)), ("2.14", (2, 14))],
)
def test_a_version_is_read_whatever_follows_it(version: str, found: tuple[int, int]) -> None:
    assert torch_compat.release(version) == found


def test_watchers_of_operators_are_seen() -> None:
    assert not torch_compat.is_observed()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return func(*args, **(kwargs or {}))

    seen = []
    with Watch():
        seen.append(torch_compat.is_observed())
    torch.vmap(lambda x: (seen.append(torch_compat.is_observed()), x)[1])(torch.zeros(2))
    assert seen == [True, True] and not torch_compat.is_observed()


class Settings:
    """Settings as torch keeps them before 2.14: for the process."""

    def __init__(self) -> None:
        self._config = {"limit": SimpleNamespace(user_override=None)}
        self.limit = 8


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_setting_of_the_process_holds_until_the_last_call_is_done(order: tuple[int, int]) -> None:
    settings = Settings()
    setting = CallSetting(settings, "limit", lambda limit: max(limit, 32))
    calls = [setting.on(), setting.on()]
    for call in calls:
        call.__enter__()
    assert settings.limit == 32
    calls[order[0]].__exit__(None, None, None)
    assert settings.limit == 32
    calls[order[1]].__exit__(None, None, None)
    assert settings.limit == 8
    with setting.on():
        settings.limit = 100
    assert settings.limit == 100, "what somebody else has set since stays"


def test_a_setting_holds_in_each_thread_that_calls() -> None:
    setting = CallSetting(torch._dynamo.config, "recompile_limit", lambda limit: max(limit, 77))
    before, seen = torch._dynamo.config.recompile_limit, list[int]()

    def call() -> None:
        with setting.on(), setting.on():
            seen.append(torch._dynamo.config.recompile_limit)
        seen.append(torch._dynamo.config.recompile_limit)

    with setting.on():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        call()
    assert seen[0] == seen[2] == seen[3] == 77 and torch._dynamo.config.recompile_limit == before
    with torch._dynamo.config.patch(recompile_limit=500), setting.on():
        assert torch._dynamo.config.recompile_limit == 500
