"""The kernels compile ahead of time, without a GPU; that of sm_90 to the machine instructions it is written for."""

from __future__ import annotations

import importlib
import re

import pytest

triton = pytest.importorskip("triton")
pytest.importorskip("triton.experimental.gluon")

import compiled_kernels  # noqa: E402

TILE = (4, 8, 4)
HEAD_DIM = 128
SHARED_LIMIT = 232448
MOST_SPILLED = 1024
"""Bytes that a kernel may spill: at most 724 were seen with Triton 3.6 to 3.9 (docs/measurements.md)."""


def descriptor(*box: int) -> str:
    from triton.experimental.gluon.language import NVMMASharedLayout

    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=len(box))
    return f"tensordesc<bf16{list(box)},{layout!r}>"


@pytest.fixture(scope="module", params=[False, True], ids=["lists", "means"])
def compiled(request):
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = importlib.import_module("lightint_compile.kernels.hopper.attention").block_sparse_attention
    frames, height, width = TILE
    half, whole = descriptor(1, frames // 2, height, width, HEAD_DIM), descriptor(1, *TILE, HEAD_DIM)
    rows = descriptor(1, frames * height * width, HEAD_DIM)
    constants = {"HEAD_DIM": HEAD_DIM, "STAGES": 2, "EXACT": False, "MEANS": request.param}
    types = {"query": half, "output": half, "prefix_key": rows, "prefix_value": rows}
    types |= {"mean_key": rows, "mean_value": rows, "offset_ptr": "*fp32", "factor": "fp32"}
    types |= dict.fromkeys(("context_key", "context_value", "current_key", "current_value"), whole)
    types |= {"index_ptr": "*i32", "count_ptr": "*i32", "scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    fixed = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = GluonASTSource(kernel, signature, fixed, {})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "maxnreg": 168})


def test_fits_one_multiprocessor(compiled):
    assert compiled.metadata.shared <= SHARED_LIMIT
    assert compiled.metadata.global_scratch_size == 0


def test_uses_the_copy_engine_and_asynchronous_matrix_instructions(compiled):
    code = compiled.asm["ptx"]
    assert "wgmma.mma_async" in code
    assert re.search(r"cp\.async\.bulk\.tensor\.5d\.shared", code)
    assert re.search(r"cp\.async\.bulk\.tensor\.5d\.global", code)
    assert re.search(r"setmaxnreg\.inc\.sync\.aligned\.u32\s+240", code)


def test_the_softmax_runs_while_values_are_multiplied(compiled):
    """After ``wait_group 1`` (the scores are there, P V is in flight) come exponentials, then ``wait_group 0``."""
    code = compiled.asm["ptx"]
    assert re.search(r"wgmma\.wait_group\.sync\.aligned\s+1", code)
    assert "ex2.approx.ftz.f32" in code or "ex2.approx.f32" in code


OTHERS = [*["camera_kernel"] * 2, *["checksum_kernel"] * 2, "dense_kernel"]
OTHERS += [*["row_weights_kernel"] * 3, "edge_rows_kernel"]

ATTENTION = ["pool_kernel", "score_kernel", "select_kernel", "means_kernel"]


@pytest.mark.parametrize(
    ("implementation", "chip", "names"),
    [
        ("hopper", 90, [*ATTENTION, "block_sparse_attention"]),
        pytest.param("portable", 80, [*ATTENTION, "attention_kernel"], marks=pytest.mark.slow),
        ("others", 80, OTHERS),
        ("linears-portable", 80, ["parts_kernel"] * 2),
        pytest.param("linears-hopper", 90, ["parts_kernel"] * 2, marks=pytest.mark.slow),
    ],
)
def test_all_kernels_of_a_call_compile_as_the_call_would_launch_them(implementation, chip, names):
    """From tensors to machine code through the host's own code: descriptors, sizes and options are a real call's."""
    found = list(compiled_kernels.measured(implementation, chip, 128))
    assert [kernel.kernel for kernel in found] == names
    assert all(kernel.shared_bytes <= SHARED_LIMIT and kernel.spilled_bytes <= MOST_SPILLED for kernel in found)
    assert all(kernel.fused is True for kernel in found)  # Triton's default will change, and with it the numbers
