"""The portable Triton kernels without a GPU: run by the interpreter, compiled ahead of time for Ampere."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

SUPPORT = Path(__file__).parents[1] / "support"

SMALLER = """
sites = program.SITES
sites["context"] = program.replace(sites["context"], query_grid=(2, 3, 5), key_grid=(5, 3, 5))
program.MASKED = {"context": ("frames", "everything", "of text"), "two-parts": ("text", "numbers")}
"""
"""Fewer tiles, ragged as before, and each kind of mask once."""

RUN = """
import json, torch
torch.set_num_threads(1)
parts = {"attention": program.attention_errors, "poison": program.poison_error}
parts |= {"selection": program.selection_differences, "whole": program.whole_errors, "masked": program.masked_errors}
print(json.dumps({name: part() for name, part in parts.items()}))
"""


@pytest.fixture(scope="module", params=[SMALLER, pytest.param("", marks=pytest.mark.slow)], ids=["smaller", "as it is"])
def interpreted(request):
    if torch.__version__ < "2.12":
        pytest.skip(f"wrap_triton of torch {torch.__version__} takes no kernel that the interpreter runs")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", f"import portable_interpreted as program\n{request.param}{RUN}"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=SUPPORT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_attention_equals_the_specification(interpreted):
    for case, error in interpreted["attention"].items():
        assert error < (2e-3 if "float16" in case else 1e-5), case


def test_selection_equals_the_specification(interpreted):
    assert interpreted["selection"] == dict.fromkeys(interpreted["selection"], 0)


def test_blocks_that_are_not_listed_are_never_read(interpreted):
    assert interpreted["poison"] == 0.0


def test_all_steps_together_equal_the_specification(interpreted):
    for case, error in interpreted["whole"].items():
        assert error < 1e-5, case


def test_masks_of_keys_equal_the_specification(interpreted):
    for case, error in interpreted["masked"].items():
        assert error < 1e-5, case


def compile_ahead(kernel, pointers, constants, floats, capability, warps):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    kinds = {**dict.fromkeys(floats, "fp32"), **dict.fromkeys(constants, "constexpr"), **pointers}
    signature = {name: kinds.get(name, "i32") for name in names}
    divisible = [i for i, n in enumerate(names) if n in pointers or n.endswith(("_batch", "_head", "_token"))]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()}, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": 3})


TILE = {"T": 4, "H": 8, "W": 4}
PARTS = {"PT": 2, "PH": 2, "PW": 1}
AMPERE_SHARED_BYTES = 163 * 1024


@pytest.mark.parametrize("means", [False, True], ids=["lists", "means"])
@pytest.mark.parametrize(("head_dim", "dim", "dtype"), [(64, 64, "*bf16"), (96, 128, "*bf16"), (128, 128, "*fp16")])
def test_attention_compiles_for_ampere(head_dim, dim, dtype, means):
    from lightint_compile.kernels.portable.attention import attention_kernel

    names = [
        "query",
        "out",
        "prefix_key",
        "context_key",
        "current_key",
        "prefix_value",
        "context_value",
        "current_value",
        "mean_key",
        "mean_value",
    ]
    pointers = {**dict.fromkeys(names, dtype), "index": "*i32", "count": "*i32", "offsets": "*fp32"}
    constants = {**TILE, "HEAD_DIM": head_dim, "DIM": dim, "QUERIES": 128, "KEYS": 64, "MEANS": means}
    kernel = compile_ahead(attention_kernel, pointers, constants, ["factor"], 80, 8)
    assert kernel.metadata.shared <= AMPERE_SHARED_BYTES
    assert "mma.sync" in kernel.asm["ptx"] and "cp.async" in kernel.asm["ptx"]


@pytest.mark.parametrize(("head_dim", "dim", "dtype"), [(64, 64, "*bf16"), (96, 128, "*bf16"), (128, 128, "*fp16")])
@pytest.mark.parametrize("capability", [80, 90])
def test_attention_to_all_keys_under_a_bias_compiles(head_dim, dim, dtype, capability):
    from lightint_compile.kernels.portable.dense import dense_kernel

    spans = [f"{span}_{side}" for side in ("key", "value") for span in ("prefix", "context", "current")]
    pointers = {**dict.fromkeys(["query", "out", *spans], dtype), "bias": "*fp32", "wanted": "*i32"}
    constants = {"HEAD_DIM": head_dim, "DIM": dim, "QUERIES": 128, "KEYS": 64}
    kernel = compile_ahead(dense_kernel, pointers, constants, ["factor"], capability, 8)
    assert kernel.metadata.shared <= AMPERE_SHARED_BYTES


def test_pooling_and_selection_compile_for_ampere():
    from lightint_compile.kernels.portable.means import means_kernel
    from lightint_compile.kernels.portable.pooling import pool_kernel
    from lightint_compile.kernels.portable.selection import score_kernel, select_kernel

    spans = {**dict.fromkeys("abc", "*bf16"), **{f"{name}_out": "*fp32" for name in "abc"}}
    pools = dict.fromkeys(("query_pool", "context_pool", "current_pool", "scores"), "*fp32")
    lists = {"scores": "*fp32", "index": "*i32", "count": "*i32", "offsets": "*fp32"}
    compile_ahead(pool_kernel, spans, {**TILE, "SLOTS": 128, "HEAD_DIM": 128, "DIM": 128}, [], 80, 2)
    compile_ahead(score_kernel, pools, {"HEAD_DIM": 128, "PIECE": 16, "EDGE": 32}, ["scale"], 80, 2)
    for flag in (False, True):
        chosen = {**TILE, **PARTS, "BLOCKS": 512, "COVER": flag, "OFFSETS": not flag}
        compile_ahead(select_kernel, lists, chosen, ["coverage"], 80, 4)
        context = dict.fromkeys(("context_key", "context_value"), "*fp32" if flag else "*bf16")
        others = dict.fromkeys(("current_key", "current_value", "key_out", "value_out"), "*bf16")
        sizes = {"T": 2, "H": 4, "W": 4, "SLOTS": 32, "HEAD_DIM": 96, "DIM": 128, "POOLED": flag}
        compile_ahead(means_kernel, {**context, **others}, sizes, [], 80, 1)
