"""Sparse attention written in ATen operators: the specification's results, for sizes that are known and for symbols."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import SITES, Site
from torch import Tensor, nn
from torch.export import Dim

from lightint_compile import kernels
from lightint_compile.kernels.aten_form import aten_table

POLICIES: dict[str, dict[str, Any]] = {
    "plain": {"density": 0.3, "neighbours": 0, "skipped_means": 0},
    "means": {"density": 0.3, "neighbours": 1, "skipped_means": 1},
    "parts": {"density": 0.2, "neighbours": 0, "skipped_means": 2},
    "coverage": {"density": 0.6, "neighbours": 0, "coverage": 0.7, "skipped_means": 1},
    "protected": {"density": 0.2, "protect_frames": 2, "context_density": 0.1, "skipped_means": 0},
}


class Attends(nn.Module):
    """One site; the frames of the context follow from the tokens."""

    def __init__(self, site: Site, policy: dict[str, Any]) -> None:
        super().__init__()
        self.site, self.policy = site, policy

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        _, height, width = self.site.key_grid
        frames = (key.shape[2] - self.site.prefix) // (height * width)
        grids = {**self.site.grids, "key_grid": (frames, height, width)}
        return kernels.sparse_attention(query, key, value, min_tokens=0, **self.policy, **grids)


def decomposed(module: nn.Module, args: tuple[Any, ...], **how: Any) -> torch.export.ExportedProgram:
    return torch.export.export(module, args, strict=False, **how).run_decompositions(aten_table())


def is_aten(program: torch.export.ExportedProgram) -> bool:
    return not any("lightint" in str(node.target) for node in program.graph.nodes)


QUICK = ("ragged", "coverage")


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        pytest.param(*case, marks=() if case == QUICK else pytest.mark.slow)
        for case in itertools.product(("ragged", "prefill", "one-tile"), POLICIES)
        if case != ("one-tile", "parts")
    ],
)
def test_it_computes_what_the_specification_does(name: str, policy: str) -> None:
    site = SITES[name]
    module, tensors = Attends(site, POLICIES[policy]), site.tensors(torch.float64)
    program = decomposed(module, tensors)
    assert is_aten(program)
    with kernels.using("reference"):
        torch.testing.assert_close(program.module()(*tensors), module(*tensors))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["means", "coverage"])
def test_no_length_of_the_context_is_made_a_number(policy: str) -> None:
    site = SITES["ragged"]
    module, tensors = Attends(site, POLICIES[policy]), site.tensors(torch.float64)
    tokens = 35 * Dim("frames", min=4, max=64) + 5
    shapes = {"query": None, "key": {2: tokens}, "value": {2: tokens}}
    program = decomposed(module, tensors, dynamic_shapes=shapes)
    assert is_aten(program)
    for frames in (8, 7, 12, 5):
        longer = replace(site, key_grid=(frames, 5, 7)).tensors(torch.float64, seed=frames)
        with kernels.using("reference"):
            torch.testing.assert_close(program.module()(*longer), module(*longer))


class Masked(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        grids = SITES["ragged"].grids
        return kernels.sparse_attention_masked(
            query, [key], [value], mask, density=0.3, neighbours=0, skipped_means=1, min_tokens=0, **grids
        )


@pytest.mark.slow
@pytest.mark.parametrize("of_text", [True, False])
def test_masks_of_keys_too(of_text: bool) -> None:
    site = replace(SITES["ragged"], batch=2)
    tensors = site.tensors(torch.float64)
    mask = torch.ones(2, site.layout.key_tokens, dtype=torch.bool)
    mask[0, 3:5] = False
    if of_text:
        mask = mask[:, : site.prefix]
    else:
        mask[1, 11::3] = False
    program = decomposed(Masked(), (*tensors, mask))
    assert is_aten(program)
    with kernels.using("reference"):
        torch.testing.assert_close(program.module()(*tensors, mask), Masked()(*tensors, mask))


class Prepared(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        site = SITES["ragged"]
        context = site.layout.context_tokens + site.prefix
        pool = kernels.prepare_context(key[:, :, site.prefix : context], grid=site.layout.context_grid, tile=site.tile)
        return torch.ops.lightint.sparse_attention_prepared(
            query, [key], [value], pool, site.query_grid, site.key_grid, site.prefix, site.tile,
            0.3, None, 0, 0, None, skipped_means=1, min_tokens=0,
        )  # fmt: skip


@pytest.mark.slow
def test_context_that_was_pooled_before_is_taken_as_it_is() -> None:
    tensors = SITES["ragged"].tensors(torch.float64)
    program = decomposed(Prepared(), tensors)
    assert is_aten(program)
    with kernels.using("reference"):
        torch.testing.assert_close(program.module()(*tensors), Prepared()(*tensors))
