"""A kept program is found only where everything that its code depends on is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor_config

from lightint_compile.kernels import cost
from lightint_compile.lowering import artifact_keys as keys
from lightint_compile.lowering.artifact_keys import SURROUNDINGS, key_of
from lightint_compile.options import LightintOptions

Patch = pytest.MonkeyPatch


def _key() -> str | None:
    return key_of(torch.fx.symbolic_trace(lambda x: torch.relu(x)), LightintOptions(), {})


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _sets(owner: Any, name: str, value: Any) -> Callable[[Patch], object]:
    """Sets an attribute that cannot be deleted, which is how a patch undoes itself."""
    SET_BACK.append((owner, name, getattr(owner, name)))
    return lambda _: setattr(owner, name, value)


SET_BACK: list[tuple[Any, str, Any]] = []

CHANGES: dict[str, list[Callable[[Patch], object]]] = {
    "torch and Python": [lambda patch: patch.setattr(torch, "__version__", "2.99")],
    "devices and driver": [
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", _constant("AVX9")),
    ],
    "Triton": [lambda patch: patch.setitem(__import__("sys").modules, "triton", type("t", (), {"__version__": "9"}))],
    "our sources": [lambda patch: patch.setattr(keys.Path, "read_bytes", lambda _: b"other")],
    "Inductor's configuration": [_sets(inductor_config, "max_autotune", True)],
    "rates of the cost model": [lambda patch: patch.setattr(cost, "MARGIN", 0.5)],
    "threads": [lambda patch: patch.setattr(torch, "get_num_threads", _constant(77))],
    "autocast": [
        lambda _: torch.set_autocast_enabled("cpu", True),
        lambda _: torch.set_autocast_dtype("cpu", torch.float16),
    ],
    "default dtype": [lambda _: torch.set_default_dtype(torch.float64)],
    "inference mode": [lambda patch: patch.setattr(torch, "is_inference_mode_enabled", _constant(True))],
    "deterministic algorithms": [
        lambda _: torch.use_deterministic_algorithms(True),
        lambda _: torch.use_deterministic_algorithms(True, warn_only=True),
    ],
    "filling of new memory": [
        lambda patch: patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    ],
    "float32 products": [lambda _: torch.set_float32_matmul_precision("high")],
    "products on CUDA": [
        _sets(torch.backends.cuda.matmul, "allow_tf32", True),
        _sets(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        _sets(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
        _sets(torch.backends.cuda.matmul, "allow_fp16_accumulation", True),
    ],
    "libraries on CUDA": [lambda patch: patch.setattr(torch.backends.cuda, "preferred_blas_library", _constant("x"))],
    "cuDNN": [
        lambda patch: patch.setattr(torch.backends.cudnn, "benchmark", True),
        lambda patch: patch.setattr(torch.backends.cudnn, "deterministic", True),
        lambda patch: patch.setattr(torch.backends.cudnn, "allow_tf32", False),
    ],
    "oneDNN": [_sets(torch.backends.mkldnn, "deterministic", True)],
    "attention": [
        lambda patch: patch.setattr(torch.backends.cuda, "flash_sdp_enabled", _constant(False)),
    ],
}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    caches = (keys._machine, keys._devices, keys._triton, keys._own_sources)
    precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    for cache in caches:
        cache.cache_clear()
    yield
    for owner, name, value in SET_BACK:
        setattr(owner, name, value)
    torch.set_float32_matmul_precision(precision)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)
    torch.set_autocast_enabled("cpu", autocast[0])
    torch.set_autocast_dtype("cpu", autocast[1])
    for cache in caches:
        cache.cache_clear()


def test_every_surrounding_has_a_change_that_is_tried() -> None:
    assert CHANGES.keys() == SURROUNDINGS.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_what_the_key_is_made_of_moves_with_each(name: str) -> None:
    before = repr(SURROUNDINGS[name]())
    assert before == repr(SURROUNDINGS[name]())
    for change in CHANGES[name]:
        with pytest.MonkeyPatch.context() as patch:
            change(patch)
            for cache in (keys._machine, keys._devices, keys._triton, keys._own_sources):
                cache.cache_clear()
            assert repr(SURROUNDINGS[name]()) != before


def test_the_gpu_and_its_driver_are_part_of_what_surrounds(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"name": "a GPU", "major": 9, "minor": 0, "multi_processor_count": 132}
    monkeypatch.setattr(torch.cuda, "is_available", _constant(True))
    monkeypatch.setattr(torch.cuda, "device_count", _constant(2))

    def seen(driver: int | None = None, **changed: object) -> str:
        with pytest.MonkeyPatch.context() as patch:
            properties = [SimpleNamespace(**gpu), SimpleNamespace(**gpu | changed)]
            patch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
            if driver is not None:
                patch.setattr(keys, "_driver", _constant(driver))
            keys._devices.cache_clear()
            return repr(keys._devices())

    assert seen() == seen(keys._driver()), "a machine without a driver has a key as well"
    changes = ({"name": "another"}, {"major": 8}, {"minor": 1}, {"multi_processor_count": 78}, {"driver": 13020})
    found = [seen(**{"driver": 13010} | change) for change in ({}, *changes)]
    assert len(set(found)) == len(found)


def test_all_of_it_is_part_of_the_key() -> None:
    before = _key()
    assert before == _key()
    for name in SURROUNDINGS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(SURROUNDINGS, name, lambda: "changed")
            assert _key() != before, f"{name} is not part of the key"


def test_the_precision_of_products_is_part_of_the_key() -> None:
    before = _key()
    torch.set_float32_matmul_precision("high")
    assert _key() != before
