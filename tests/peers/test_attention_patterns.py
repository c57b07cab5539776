"""PyTorch's own attention patterns (``test/inductor/test_fused_attention.py`` of ``--pytorch``) under the backend.

The checkout's tests build the functions and their inputs; its check, which reads Inductor's code, is replaced by one of
ours: results and gradients as in eager, and whether canonicalize-attention found the attention.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils import _pytree as pytree

FILE = Path("test/inductor/test_fused_attention.py")
PASS = "canonicalize-attention"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = _module(metafunc.config)
    template = getattr(module, "TestSDPAPatternRewriterTemplate", None)
    names = [name for name in dir(template) if name.startswith("_test_")] or ["none"]
    metafunc.parametrize("name", names)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_pattern(name: str, dynamic: bool, tally: Any, pytestconfig: pytest.Config) -> None:
    module = _module(pytestconfig)
    if module is None:
        pytest.skip("needs --pytorch CHECKOUT")
    case = _checker(module, name, tally, dynamic)()
    arguments = {"dtype": torch.float32} if name.endswith("rewriter_13") else {}
    with _under_the_backend(module):
        getattr(case, name)(**arguments)
    assert not case.faults, "\n".join(case.faults)


def _module(config: pytest.Config) -> ModuleType | None:
    checkout = config.getoption("--pytorch")
    if checkout is None:
        return None
    spec = importlib.util.spec_from_file_location("peer_attention_patterns", checkout / FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checker(module: ModuleType, name: str, tally: Any, dynamic: bool) -> Any:
    """The checkout's class, with a check of ours."""

    class Checker(module.TestSDPAPatternRewriterTemplate):  # type: ignore[name-defined]
        device = "cpu"
        use_static_shapes = not dynamic

        def __init__(self) -> None:
            super().__init__("__init__")
            self.faults: list[str] = []
            self._checks = 0

        def _check_common(
            self,
            function: Any,
            args1: Sequence[Any] | None = None,
            *,
            atol: float = 1e-5,
            has_fuse_pattern: bool = True,
            has_dropout: bool = False,
            check_train: bool = True,
            override_check_equal: bool = False,
            dtype: torch.dtype = torch.float,
            rtol: float = 1.3e-6,
            **_: Any,
        ) -> None:
            inputs = args1 or [torch.randn(4, 2, 16, 32, dtype=dtype) for _ in range(3)]
            wrapped = "checkpointed, " * (getattr(function, "__name__", "") == "inner")
            suite = f"attention patterns, {wrapped}{'dynamic' if dynamic else 'static'}"
            label = f"{name}:{self._checks}"
            self._checks += 1
            for training in [False, True][: 1 + check_train]:
                same = not has_dropout or override_check_equal
                flag = [training] * has_dropout
                fault = _fault(function, inputs, flag, training, dynamic, max(atol, 1e-5) if same else None, rtol)
                how = "with gradients" if training else "without gradients"
                tally.add(f"{suite}, {how}", "wrong" if fault else "right", label, fault)
                self.faults += [f"{label} {how}: {fault}"] * bool(fault)
                if not training and has_fuse_pattern:
                    found, why = _recognised()
                    tally.add(f"{suite}, recognised", "yes" if found else "no", label, why)

    return Checker


def _fault(
    function: Any,
    inputs: Sequence[Any],
    flag: list[bool],
    training: bool,
    dynamic: bool,
    atol: float | None,
    rtol: float,
) -> str:
    """How a compiled call (and its gradients) differs from eager's; values are not compared without ``atol``."""
    torch._dynamo.reset()
    eager, compiled = _copies(inputs, training), _copies(inputs, training)
    if dynamic:
        for tensor in compiled[:3]:
            torch._dynamo.mark_dynamic(tensor, 0)
    torch.manual_seed(1234)
    expected = function(*eager, *flag)
    torch.manual_seed(1234)
    try:
        actual = torch.compile(function, fullgraph=True)(*compiled, *flag)
        pairs = list(zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True))
        if training:
            sum(result.sum() for result, _ in pairs).backward()
            sum(result.sum() for _, result in pairs).backward()
            pairs += [(a.grad, b.grad) for a, b in zip(compiled, eager, strict=True) if _is_float(a)]
            assert all((got is None) == (wanted is None) for got, wanted in pairs)
            pairs = [pair for pair in pairs if pair[0] is not None]
        for got, wanted in pairs:
            assert got.shape == wanted.shape and got.dtype == wanted.dtype
            if atol is not None:
                torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return ""


def _recognised() -> tuple[bool, str]:
    """Whether the last compiled graph's attention was found, and the near miss where it was not."""
    from lightint_compile.compiled import CompiledGraph

    graphs = sorted(CompiledGraph._all, key=lambda graph: graph.order)
    if not graphs:
        return False, "no graph"
    section = graphs[-1].section
    if any(row.name == PASS and row.rewritten for row in section.passes):
        return True, ""
    return False, section.untouched + " " + "; ".join(r.message for r in section.remarks if r.pass_name == PASS)


@contextlib.contextmanager
def _under_the_backend(module: ModuleType) -> Iterator[None]:
    """``torch.compile`` means this backend, and the code that a test reads is what was recognised."""
    compile_ = torch.compile

    def compiled(model: Any = None, **keywords: Any) -> Any:
        options = {"preset": "exact", "delegate": "eager"}
        return compile_(model, **{**keywords, "backend": "lightint", "options": options})

    def run_and_get_code(function: Any, *arguments: Any) -> tuple[Any, list[str]]:
        result = function(*arguments)
        return result, ["aten._scaled_dot_product_efficient_attention" * _recognised()[0]]

    patches = {"run_and_get_code": run_and_get_code, "GPU_TYPE": "cpu"}
    with mock.patch.object(torch, "compile", compiled), mock.patch.multiple(module, **patches):
        yield


def _copies(inputs: Sequence[Any], training: bool) -> list[Any]:
    copies = [value.detach().clone() if isinstance(value, torch.Tensor) else value for value in inputs]
    return [value.requires_grad_(training) if _is_float(value) else value for value in copies]


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
