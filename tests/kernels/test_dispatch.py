"""Which implementation runs, and that a device or Triton that cannot run one falls to the next with a reason."""

import sys
import types

import pytest
import torch
from attention_cases import SITES

from lightint_compile import kernels
from lightint_compile.kernels import dispatch, planning

GPU = torch.device("cuda", 0)
TILE = (4, 8, 4)


@pytest.fixture(autouse=True)
def fresh():
    dispatch._by_capability.cache_clear()
    planning.forget()
    yield
    dispatch._by_capability.cache_clear()
    planning.forget()


def pretend(monkeypatch, capability, hopper):
    """A CUDA device of a stated capability, and a Gluon package that answers as stated."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: None)
    module = types.ModuleType("lightint_compile.kernels.hopper")
    if hopper is not None:
        module.supported = hopper
    monkeypatch.setitem(sys.modules, "lightint_compile.kernels.hopper", module)


def test_the_cpu_gathers():
    choice = kernels.implementation(torch.zeros(1, 1, 1, 64))
    assert choice == "gather" and choice.reason


def test_other_devices_fall_to_the_reference():
    choice = kernels.implementation(torch.zeros(1, 1, 1, 64, device="meta"))
    assert choice == "reference" and "meta" in choice.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_fake_gpu_tensor_without_a_gpu_is_a_reason():
    with torch._subclasses.FakeTensorMode():
        query = torch.empty(1, 1, 1, 64, device="cuda", dtype=torch.bfloat16)
    assert kernels.implementation(query) == "reference"


@pytest.mark.parametrize(
    ("capability", "hopper", "dtype", "head_dim", "expected"),
    [
        ((9, 0), lambda query, tile: None, torch.bfloat16, 128, "hopper"),
        ((9, 0), lambda query, tile: "tile of 100 slots", torch.bfloat16, 128, "portable"),
        ((9, 0), None, torch.bfloat16, 128, "portable"),
        ((8, 0), lambda query, tile: "not sm_90", torch.float16, 64, "portable"),
        ((7, 5), lambda query, tile: None, torch.float16, 64, "reference"),
        ((9, 0), lambda query, tile: None, torch.float32, 64, "reference"),
        ((9, 0), lambda query, tile: None, torch.bfloat16, 80, "reference"),
    ],
)
def test_a_gpu_takes_the_best_kernel_it_can_run(monkeypatch, capability, hopper, dtype, head_dim, expected):
    pytest.importorskip("triton")
    pretend(monkeypatch, capability, hopper)
    choice = dispatch._by_capability(GPU, dtype, head_dim, TILE)
    assert choice == expected and choice.reason


def test_a_gluon_kernel_that_cannot_be_loaded_is_a_reason_not_a_crash(monkeypatch):
    pytest.importorskip("triton")

    def broken(query, tile):
        raise RuntimeError("no such instruction")

    pretend(monkeypatch, (9, 0), broken)
    choice = dispatch._by_capability(GPU, torch.bfloat16, 128, TILE)
    assert choice == "portable" and "no such instruction" in choice.reason


def test_the_cost_model_decides_and_using_overrides(monkeypatch):
    site = SITES["aligned"]
    query, key, value = site.tensors(torch.float64)
    cost = types.ModuleType("lightint_compile.kernels.cost")
    monkeypatch.setitem(sys.modules, "lightint_compile.kernels.cost", cost)
    asked = []
    for answer, expected in ((True, "gather"), (False, "dense")):
        cost.prefers_sparse = lambda *arguments, answer=answer, host_hidden: asked.append(arguments) or answer
        assert dispatch.prefers_sparse(query, site.layout, 4, 1, site.tile) == expected
    # 4 of 16 blocks of 32 tokens, and 12 means
    assert asked[0] == (query.device, query.dtype, 1, 2, 64, 256, 512, (4 * 32 + 16) / 512, "gather")
    dense = kernels.sparse_attention(query, key, value, density=0.3, **site.grids)
    torch.testing.assert_close(dense, torch.nn.functional.scaled_dot_product_attention(query, key, value))
    with kernels.using("gather"):
        sparse = kernels.sparse_attention(query, key, value, density=0.3, **site.grids)
    assert (sparse - dense).abs().max() > 1e-3


def test_importing_the_package_needs_no_triton():
    """The operators and the CPU implementation load in a process where Triton cannot be imported."""
    import subprocess

    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from lightint_compile import kernels\n"
        "x = torch.randn(1, 1, 16, 8)\n"
        "print(kernels.sparse_attention(x, x, x, query_grid=(1, 4, 4), key_grid=(1, 4, 4)).shape)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_decompositions_reach_the_portable_steps():
    """Every operator traces to portable steps alone, so that an archive can hold compiled kernels."""
    pytest.importorskip("triton")
    from lightint_compile.kernels.decompositions import portable_table

    site = SITES["ragged"]

    class Attention(torch.nn.Module):
        def forward(self, query, key, value):
            return kernels.sparse_attention(query, key, value, **site.grids)

    exported = torch.export.export(Attention(), site.tensors(torch.float32), strict=False)
    names = {str(node.target) for node in exported.graph.nodes if "lightint" in str(node.target)}
    assert names == {"lightint.sparse_attention.default"}
    lowered = exported.run_decompositions(portable_table())
    steps = [str(node.target) for node in lowered.graph.nodes if "lightint" in str(node.target)]
    assert steps == [f"lightint.portable_{step}.default" for step in ("pool", "select", "pool", "attend")]


def test_prepared_context_reaches_the_portable_steps_too():
    pytest.importorskip("triton")
    from lightint_compile.kernels.decompositions import portable_table

    site = SITES["ragged"]
    layout = site.layout
    cut = [layout.prefix, layout.context_tokens, layout.current_tokens]

    class Attention(torch.nn.Module):
        def forward(self, query, key, value):
            keys, values = key.split(cut, 2), value.split(cut, 2)
            grid = {"grid": layout.context_grid, "tile": site.tile}
            pool, value_means = kernels.prepare_context(keys[1], **grid), kernels.prepare_context(values[1], **grid)
            return kernels.sparse_attention_prepared(query, keys, values, pool, pool, value_means, **site.grids)

    exported = torch.export.export(Attention(), site.tensors(torch.float32), strict=False)
    lowered = exported.run_decompositions(portable_table())
    steps = [node for node in lowered.graph.nodes if "lightint" in str(node.target)]
    names = [str(node.target).removeprefix("lightint.portable_").removesuffix(".default") for node in steps]
    assert names == ["pool", "pool", "pool", "select", "pool", "pool", "attend"]
    # the context's keys and values alone, then queries and current keys, then means of current keys and values
    assert [len(steps[i].args[0]) for i in (0, 1, 2, 4, 5)] == [1, 1, 2, 1, 1]


def test_an_sm_90_device_on_the_portable_kernel_is_warned_of_once_with_the_reason(monkeypatch, caplog):
    pytest.importorskip("triton")
    pretend(
        monkeypatch, (9, 0), lambda query, tile: "the sm_90 kernel is written for Triton 3.6 to 3.9, this is 3.10.0"
    )
    dispatch._warn_once.cache_clear()
    with caplog.at_level("WARNING", logger=dispatch.log.name):
        for head_dim in (64, 128, 64):
            assert dispatch._by_capability(GPU, torch.bfloat16, head_dim, TILE) == "portable"
    (record,) = caplog.records
    assert "portable kernel" in record.message and "this is 3.10.0" in record.message
    dispatch._warn_once.cache_clear()


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_the_best_kernel_of_a_device_is_nothing_to_warn_of(capability, monkeypatch, caplog):
    pytest.importorskip("triton")
    pretend(monkeypatch, capability, lambda query, tile: None if capability == (9, 0) else "not sm_90")
    dispatch._warn_once.cache_clear()
    with caplog.at_level("WARNING", logger=dispatch.log.name):
        dispatch._by_capability(GPU, torch.bfloat16, 128, TILE)
    assert not caplog.records


def test_pooling_finer_tiles_is_nothing_to_warn_of(monkeypatch):
    """The sm_90 kernel attends to tiles of 128 tokens only; pools of parts of a tile are made by the same kernel."""
    asked = []
    real = dispatch.implementation
    monkeypatch.setattr(dispatch, "implementation", lambda *given: asked.append(given[1:]) or real(*given))
    torch.ops.lightint.pool_tiles(torch.randn(1, 2, 128, 64), [4, 8, 4], [2, 8, 4])
    assert asked == [()]
