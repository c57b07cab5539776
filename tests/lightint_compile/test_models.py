"""Real models through the backend: as close to float64 as eager is, whatever kind of model it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from float64 import largest_error, partial_reference, reference
from quick_variants import mostly_slow
from torch import Tensor, nn

from lightint_compile.compiled import report

RATIO = 2.0
"""How much further from float64 than eager the compiled model may be."""

#: One of each kind: text by cross-attention, behind and in front of the video in one sequence, frames with noise of
#: their own, known frames beside drawn ones.
KINDS = {"wan", "skyreels_v2_df", "cogvideox"}
DELEGATES = ["eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def _check(module: nn.Module, kwargs: dict[str, Any], delegate: str, **options: Any) -> Any:
    """Twice as far as eager at most, from what the model computes in float64 throughout and from ``model.double()``.

    The second keeps what the model's authors put into float32, and with it eager's rounding there. Inductor rounds
    those places otherwise (its ``exp`` and ``sin`` are other code), with or without us: there, twice as far as stock
    Inductor is allowed too. ltx needs that (stock Inductor is 3.4 times as far as eager, and so are we), latte is on
    the edge (2.0 times, both); from float64 throughout, both models are within 7 % of eager.
    """
    compiled = torch.compile(module, backend="lightint", options={"delegate": delegate, "strict": True, **options})
    with torch.no_grad():
        eager, got = _first(module(**kwargs)), _first(compiled(**kwargs))
    assert got.dtype == eager.dtype
    truth = _first(reference(module, kwargs))
    assert largest_error(got, truth) <= _allowed(eager, truth)
    partial = partial_reference(module, kwargs)
    if partial is not None and largest_error(got, _first(partial)) > _allowed(eager, _first(partial)):
        assert delegate == "inductor"
        assert largest_error(got, _first(partial)) <= _allowed(_by_inductor(module, kwargs), _first(partial))
    return compiled


def _allowed(result: Tensor, truth: Tensor) -> float:
    floor = torch.finfo(result.dtype).eps * float(truth.abs().max())
    return RATIO * max(largest_error(result, truth), floor)


def _by_inductor(module: nn.Module, kwargs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return _first(torch.compile(module, backend="inductor")(**kwargs))


@pytest.mark.parametrize("delegate", DELEGATES)
@pytest.mark.parametrize("name", mostly_slow(zoo.names(), quick=KINDS))
def test_video_transformers(name: str, delegate: str) -> None:
    module, kwargs = zoo.build(name)
    compiled = _check(module, kwargs, delegate)
    assert report(compiled).sections


def _vit() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4
    )
    return ViTModel(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


def _gpt2() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=64, n_positions=32)
    return GPT2Model(config), {"input_ids": torch.randint(0, 64, (2, 12)), "use_cache": False}


def _bert() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=64)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:] = 0
    return BertModel(config), {"input_ids": torch.randint(0, 64, (2, 12)), "attention_mask": mask}


def _t5() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import T5Config, T5Model

    config = T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=64, use_cache=False)
    ids = torch.randint(0, 64, (2, 10))
    return T5Model(config), {"input_ids": ids, "decoder_input_ids": ids[:, :6]}


def _mlp() -> tuple[nn.Module, dict[str, Any]]:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU()) for _ in range(4)))
    return layers, {"input": torch.randn(3, 16)}


def _convolutions() -> tuple[nn.Module, dict[str, Any]]:
    layers = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*layers), {"input": torch.randn(2, 4, 8, 8)}


def _recurrent() -> tuple[nn.Module, dict[str, Any]]:
    return nn.GRU(8, 8, batch_first=True), {"input": torch.randn(2, 5, 8)}


FOREIGN: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "vit": _vit,
    "gpt2": _gpt2,
    "bert": _bert,
    "t5": _t5,
    "mlp": _mlp,
    "convolutions": _convolutions,
    "recurrent": _recurrent,
}


def _foreign(name: str) -> tuple[nn.Module, dict[str, Any]]:
    if name in ("vit", "gpt2", "bert", "t5"):
        pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    module, kwargs = FOREIGN[name]()
    return module.eval(), kwargs


@pytest.mark.parametrize("delegate", DELEGATES)
@pytest.mark.parametrize("name", FOREIGN)
def test_models_that_are_no_world_models(name: str, delegate: str) -> None:
    _check(*_foreign(name), delegate)


@pytest.mark.parametrize("name", ["bert", "convolutions"])
def test_training_is_inductors(name: str) -> None:
    module, kwargs = _foreign(name)
    twin = copy.deepcopy(module).train()
    module.train()
    for part in (*module.modules(), *twin.modules()):
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    compiled = torch.compile(module, backend="lightint", options={"delegate": "eager"})
    _first(compiled(**kwargs)).square().mean().backward()
    _first(twin(**kwargs)).square().mean().backward()
    for got, expected in zip(module.parameters(), twin.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-5)


def test_a_batch_that_grows_compiles_once_more_at_most() -> None:
    module, kwargs = _foreign("bert")
    compiled = torch.compile(module, backend="lightint", options={"delegate": "eager"})
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for batch in (2, 3, 5, 7):
            inputs = {name: value[:1].expand(batch, -1).contiguous() for name, value in kwargs.items()}
            torch.testing.assert_close(compiled(**inputs)[0], module(**inputs)[0], rtol=1e-4, atol=1e-5)


def _half() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [
        ("vit", _half, 5e-2),
        pytest.param("vit", torch.inference_mode, 1e-4, marks=pytest.mark.slow),
        pytest.param("gpt2", _half, 5e-2, marks=pytest.mark.slow),
        ("gpt2", torch.inference_mode, 1e-4),
        ("convolutions", _half, 5e-2),
        ("convolutions", torch.inference_mode, 1e-4),
    ],
)
def test_modes_around_the_call(name: str, mode: Callable[[], Any], tolerance: float) -> None:
    module, kwargs = _foreign(name)
    compiled = torch.compile(module, backend="lightint", options={"delegate": "eager", "strict": True})
    with torch.no_grad(), mode():
        expected, got = _first(module(**kwargs)), _first(compiled(**kwargs))
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "convolutions", "recurrent"])
def test_off_is_inductor_bit_for_bit(name: str) -> None:
    module, kwargs = _foreign(name)
    with torch.no_grad():
        expected = _first(torch.compile(module, backend="inductor")(**kwargs))
        torch._dynamo.reset()
        got = _first(torch.compile(module, backend="lightint", options={"preset": "off"})(**kwargs))
    assert torch.equal(got, expected)
