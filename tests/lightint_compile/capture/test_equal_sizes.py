"""Keys and values have one length, also where every input has a symbol of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from differential import trace
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lightint_compile.passes.ir.fake_values import Size, size_of
from lightint_compile.passes.ir.program import Program

DYNAMIC = {"key": 2, "value": 2, "text_key": 2, "text_value": 2}


def noise(tokens: int) -> Tensor:
    return torch.randn(1, 2, tokens, 8)


def lengths(program: Program) -> list[Size]:
    found = {program.input_of(node).path: node.meta["val"] for node in program.placeholders()}
    return [size_of(found[name].shape[2]) for name in DYNAMIC if name in found]


def captured(function: Callable[..., Tensor], **tokens: int) -> Program:
    inputs = {name: noise(count) for name, count in tokens.items()}
    dynamic = {name: axis for name, axis in DYNAMIC.items() if name in tokens}
    return trace(function, {"query": noise(4), **inputs}, dynamic=dynamic)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value)


def joined(query: Tensor, key: Tensor, value: Tensor, text_key: Tensor, text_value: Tensor) -> Tensor:
    key, value = torch.cat([text_key, key], 2), torch.cat([text_value, value], 2)
    return scaled_dot_product_attention(query, key, value)


def test_keys_and_values_of_an_attention_have_one_symbol():
    key, value = lengths(captured(attend, key=6, value=6))
    assert key == value and not isinstance(key, int)


def test_so_have_the_parts_that_they_are_joined_from():
    key, value, text_key, text_value = lengths(captured(joined, key=6, value=6, text_key=5, text_value=5))
    assert key == value and text_key == text_value and key != text_key


def test_parts_that_were_no_pairs_stay_apart():
    key, value, text_key, text_value = lengths(captured(joined, key=6, value=7, text_key=5, text_value=4))
    assert key != value and text_key != text_value


def test_sizes_that_nothing_relates_stay_apart():
    def apart(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query * key.sum(2, keepdim=True)) + value.mean(2, keepdim=True)

    key, value = lengths(captured(apart, key=6, value=6))
    assert key != value
