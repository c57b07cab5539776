"""``lightint::wide_attention``: attention by products against float64, and against PyTorch's operator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from wide_cases import CASES, Case, exact, mask_of, operands

from lightint_compile.errors import InputError
from lightint_compile.kernels import wide_heads
from lightint_compile.kernels.wide_heads import Round, rounds, wide_attention

SUPPORT = Path(__file__).parents[1] / "support"
lightint = torch.ops.lightint


@pytest.mark.parametrize("name", CASES)
def test_it_is_attention(name: str) -> None:
    case = CASES[name]
    parts, mask = operands(case, torch.float64), mask_of(case, torch.float64)
    found = wide_attention(*parts, mask, case.scale)
    torch.testing.assert_close(found, exact(*parts, mask, case.scale), rtol=1e-12, atol=1e-12)
    assert found.is_contiguous()


def test_operator_contract() -> None:
    for case in CASES.values():
        arguments = (*operands(case, torch.float32), mask_of(case, torch.float32), case.scale)
        torch.library.opcheck(lightint.wide_attention.default, arguments)
    torch.library.opcheck(lightint.wide_attention.default, (*operands(Case(), torch.bfloat16), None, None))


#: Sizes that show each case to the interpreter, which takes a tenth of a second for a step of a row.
SMALLER: dict[str, dict[str, int]] = {
    "heads in rounds of rows": {"batch": 1, "queries": 24},
    "heads together": {"batch": 1},
    "padded keys": {"queries": 6},
    "the least number of the dtype": {"queries": 6},
    "keys that are all alike": {"queries": 1},
    "rows without a key": {"queries": 6},
}


@pytest.mark.parametrize("smaller", [SMALLER, pytest.param({}, marks=pytest.mark.slow)], ids=["smaller", "as they are"])
def test_the_kernel_interpreted_rounds_once(smaller: dict[str, dict[str, int]]) -> None:
    pytest.importorskip("triton")
    program = (
        "import runpy, wide_cases; cases = wide_cases.CASES\n"
        f"cases.update({{name: cases[name]._replace(**sizes) for name, sizes in {smaller!r}.items()}})\n"
        f"runpy.run_path({str(SUPPORT / 'wide_heads_interpreted.py')!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, cwd=SUPPORT, timeout=300)
    assert found.returncode == 0, found.stderr
    errors = json.loads(found.stdout)
    assert set(errors) == set(CASES) and max(errors.values()) < 1e-3, errors  # half a bit of float16 is 5e-4
    assert errors["keys that are all alike"] < 6e-4  # the result alone is rounded


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 60), st.integers(1, 300), st.integers(1, 2000))
def test_rounds_are_all_rows_once_and_no_more_scores_than_are_allowed(
    heads: int, rows: int, keys: int, allowed: int
) -> None:
    before, wide_heads.SCORES = wide_heads.SCORES, allowed
    try:
        every = list(rounds(heads, rows, keys))
    finally:
        wide_heads.SCORES = before
    seen = [(each.head + h, each.row + r) for each in every for h in range(each.heads) for r in range(each.rows)]
    assert sorted(seen) == [(head, row) for head in range(heads) for row in range(rows)]
    assert all(each.heads * each.rows * keys <= max(allowed, keys) for each in every)


def test_rounds_take_whole_heads_where_several_fit() -> None:
    assert list(rounds(3, 1000, 1000)) == [Round(0, 3, 0, 1000)]
    assert next(rounds(1, 1560, 99_840)) == Round(0, 1, 0, 672)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda q, k, v: (q[0], k, v), r"are not \[batch, heads, tokens"),
        (lambda q, k, v: (q, k, v[:, :, 1:]), "do not fit together"),
        (lambda q, k, v: (q, k[..., 1:], v), "do not fit together"),
        (lambda q, k, v: (q.expand(-1, 2, -1, -1), k, v), "do not fit together"),
        (lambda q, k, v: (q, k.double(), v), "differ in dtype"),
        (lambda q, k, v: (q, k, v, torch.ones(100, dtype=torch.int64)), "neither bool"),
    ],
)
def test_what_does_not_fit_is_told(change: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        wide_attention(*change(*operands(Case(), torch.float32)))


def test_a_gradient_is_refused() -> None:
    query, key, value = operands(Case(), torch.float32)
    with pytest.raises(InputError, match="no gradient"):
        wide_attention(query.requires_grad_(), key, value).sum().backward()


# --- on a GPU --------------------------------------------------------------------------------------------------------

LARGE = {
    "many keys": Case(queries=200, keys=98_280, scale=0.02),
    "a sample for each pixel": Case(70_000, queries=16, keys=16, value_dim=8),
    "a frame of a decoder and its past": Case(queries=1560, keys=16_380, head_dim=1024, value_dim=1024, scale=1 / 32),
    "a frame alone": Case(queries=6240, keys=6240, head_dim=384, value_dim=384),
    "an odd number of keys": Case(2, 2, queries=333, keys=4097, head_dim=512, value_dim=512, mask="bool"),
}


@pytest.fixture
def by_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of any size go by products."""
    monkeypatch.setattr(wide_heads, "FEWEST", 0)


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.gpu
@pytest.mark.usefixtures("by_products_alone")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_on_a_gpu_it_is_as_exact_as_the_operator_of_torch(name: str, dtype: torch.dtype) -> None:
    case = {**CASES, **LARGE}[name]
    parts, mask = [each.cuda() for each in operands(case, dtype)], mask_of(case, dtype)
    mask = None if mask is None else mask.cuda()
    wanted = exact(*parts, mask, case.scale)
    found = wide_attention(*parts, mask, case.scale)
    theirs = F.scaled_dot_product_attention(*parts, mask, scale=case.scale)
    assert found.isfinite().all() and found.is_contiguous()
    kept = wanted.abs().sum(-1) > 0  # operators of torch differ in what a query without a key gets
    assert not found[~kept].any()
    bound = {torch.bfloat16: 4e-3, torch.float16: 6e-4}[dtype]
    assert difference(found[kept], wanted[kept]) < max(bound, 1.2 * difference(theirs[kept], wanted[kept]))


@pytest.mark.gpu
@pytest.mark.usefixtures("by_products_alone")
def test_on_a_gpu_operands_are_taken_as_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_heads, "SCORES", 5000)
    query, key, value = (each.cuda() for each in operands(Case(2, 3, keys=203), torch.bfloat16))
    wanted = wide_attention(query, key, value)
    turned = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in (query, key, value)]
    cut = [torch.cat([each, each], 2)[:, :, : each.shape[2]] for each in (query, key, value)]
    odd = [torch.cat([each[..., :1], each], -1)[..., 1:] for each in (query, key, value)]
    columns = [each.mT.contiguous().mT for each in (query, key, value)]
    for each in (turned, cut, odd, columns):
        assert difference(wide_attention(*each), wanted.double()) < 4e-3
    with torch.autocast("cuda", dtype=torch.float16):
        assert torch.equal(wide_attention(query, key, value), wanted)


@pytest.mark.gpu
@pytest.mark.usefixtures("by_products_alone")
def test_on_a_gpu_masks_are_those_of_torch() -> None:
    case = Case(2, 2, keys=70, mask="added")
    parts, mask = [each.cuda() for each in operands(case, torch.bfloat16)], mask_of(case, torch.bfloat16)
    assert mask is not None
    found, theirs = wide_attention(*parts, mask.cuda()), F.scaled_dot_product_attention(*parts, mask.cuda())
    assert difference(found, theirs.double()) < 1e-2


@pytest.mark.gpu
@pytest.mark.usefixtures("by_products_alone")
def test_on_a_gpu_a_nan_stays_in_its_row() -> None:
    query, key, value = (each.cuda() for each in operands(Case(), torch.bfloat16))
    query[0, 0, 3, 5] = float("nan")
    found = wide_attention(query, key, value)[0, 0]
    assert found[3].isnan().all() and found[:3].isfinite().all() and found[4:].isfinite().all()


@pytest.mark.gpu
def test_on_a_gpu_memory_has_a_bound() -> None:
    case = Case(queries=1560, keys=99_840, head_dim=1024, value_dim=1024)
    query, key, value = (
        torch.randn(1, 1, n, 1024, device="cuda", dtype=torch.bfloat16) for n in (1560, 99_840, 99_840)
    )
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    wide_attention(query, key, value, None, case.scale)
    assert torch.cuda.max_memory_allocated() - before < 6.5 * wide_heads.SCORES


@pytest.mark.gpu
@pytest.mark.usefixtures("by_products_alone")
def test_on_a_gpu_it_can_be_recorded() -> None:
    query, key, value = (each.cuda() for each in operands(Case(), torch.bfloat16))
    wide_attention(query, key, value)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = wide_attention(query, key, value)
    query.neg_()
    graph.replay()
    assert torch.equal(found, wide_attention(query, key, value))


@pytest.mark.gpu
def test_on_a_gpu_few_scores_go_to_torch() -> None:
    parts = [each.cuda() for each in operands(Case(), torch.bfloat16)]
    assert torch.equal(wide_attention(*parts), F.scaled_dot_product_attention(*parts))
