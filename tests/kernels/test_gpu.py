"""The portable kernels on a real GPU: error budget, memory, offsets beyond 2**31, graphs, repeats."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from attention_cases import SITES, Site, random_lists

from lightint_compile import kernels
from lightint_compile.kernels import dispatch, reference
from lightint_compile.kernels.spans import split_spans
from lightint_compile.kernels.steps import ContextPools, run_steps

pytestmark = pytest.mark.gpu

KINDS = ["none", "one", "two", "all", "mixed", "permuted", "duplicate"]
REAL = Site((4, 30, 52), (8, 30, 52), (4, 8, 4), prefix=77, heads=4, key_heads=2, head_dim=128)


def masked_dense(query, key, value, weights):
    """Dense attention of the same dtype over the expanded lists: what the error budget is measured against."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    bias = weights.to(torch.float32).log()
    logits = (query @ key.mT * query.shape[-1] ** -0.5).float() + bias
    return (logits.softmax(-1).nan_to_num().to(query.dtype) @ value).nan_to_num()


def assert_within_budget(ours, exact, dense):
    eps = torch.finfo(ours.dtype).eps
    allowed = 2 * (dense.double() - exact).abs().max() + eps * exact.abs().max()
    assert (ours.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SITES)
def test_error_is_within_twice_that_of_dense_attention(name, dtype):
    site = SITES[name]
    query, key, value = site.tensors(dtype, "cuda")
    for kind in KINDS:
        lists = random_lists(site, kind, "cuda")
        with kernels.using("reference"):
            wide = (part.double() for part in (query, key, value))
            exact = kernels.block_sparse_attention(*wide, *lists, **site.grids)
        dense = masked_dense(query, key, value, reference.token_weights(*lists, site.layout))
        with kernels.using("portable"):
            ours = kernels.block_sparse_attention(query, key, value, *lists, **site.grids)
        assert_within_budget(ours, exact, dense)


def test_whole_operator_at_a_real_shape():
    query, key, value = REAL.tensors(torch.bfloat16, "cuda")
    results = {}
    best = str(kernels.implementation(query))
    for name in {"portable", best, "reference"}:
        with kernels.using(name):
            results[name] = kernels.sparse_attention(query, key, value, density=0.3, protect_frames=4, **REAL.grids)
    for name in set(results) - {"reference"}:
        assert (results[name].float() - results["reference"].float()).abs().mean() < 1e-3
    dense = kernels.sparse_attention(query, key, value, density=1.0, **REAL.grids)
    everything = random_lists(REAL, "all", "cuda")
    with kernels.using("portable"):
        all_blocks = kernels.block_sparse_attention(query, key, value, *everything, **REAL.grids)
    wide = [part.double().repeat_interleave(4 // part.shape[1], 1) for part in (query, key, value)]
    assert_within_budget(all_blocks, F.scaled_dot_product_attention(*wide), dense)


def test_selection_agrees_with_the_specification():
    pools = [torch.randn(1, 4, tiles, 129, device="cuda").abs_() for tiles in (52, 52, 52)]
    for policy in ({"density": 0.3}, {"density": 0.6, "coverage": 0.7, "scale": 0.3}):
        grids = {"query_grid": REAL.query_grid, "key_grid": REAL.key_grid, "tile": REAL.tile}
        lists = []
        for name in ("portable", "reference"):
            with kernels.using(name):
                lists.append(kernels.select_blocks(pools[0], pools[1:], **grids, **policy))
        times = [reference.multiplicity(*pair, REAL.layout) for pair in lists]
        # Sums in another order may swap two blocks of all but equal score.
        assert (times[0] != times[1]).float().mean() < 1e-3


def test_no_host_synchronisation_and_graph_replay():
    site = REAL
    query, key, value = site.tensors(torch.bfloat16, "cuda")
    with kernels.using("portable"):
        run = lambda: kernels.sparse_attention(query, key, value, density=0.3, coverage=0.9, **site.grids)  # noqa: E731
        run()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        for seed in (1, 2):
            for part, fresh in zip((query, key, value), site.tensors(torch.bfloat16, "cuda", seed), strict=True):
                part.copy_(fresh)
            graph.replay()
            assert torch.equal(captured, run())


def step_by_step(name, query, key, value, **settings):
    """Sparse attention without bound launches."""
    layout = REAL.layout
    spans = [split_spans([part], layout) for part in (key, value)]
    chosen = {"coverage": None, "protect_frames": 0, "neighbours": 1, "scale": 128**-0.5} | settings
    return run_steps(dispatch.load(name), query, *spans, layout, chosen, ContextPools(), True)


@pytest.mark.parametrize("name", ["portable", "hopper"])
def test_bound_launches_read_and_write_the_tensors_of_their_own_call(name):
    if name == "hopper" and kernels.implementation(REAL.tensors(torch.bfloat16, "cuda")[0]) != "hopper":
        pytest.skip("the sm_90 kernel does not run here")
    settings = {"density": 0.3, "protect_frames": 4}
    seen = []
    for seed in range(4):
        query, key, value = REAL.tensors(torch.bfloat16, "cuda", seed)
        if seed == 3:  # starts where Triton compiles another variant
            key = torch.cat([key.new_zeros(1), key.flatten()])[1:].view(key.shape)
        with kernels.using(name):
            seen.append(kernels.sparse_attention(query, key, value, **settings, **REAL.grids))
        assert torch.equal(seen[-1], step_by_step(name, query, key, value, **settings))
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("name", ["portable", "hopper"])
def test_prepared_context_gives_the_same_bits(name):
    query, key, value = REAL.tensors(torch.bfloat16, "cuda")
    if name == "hopper" and kernels.implementation(query) != "hopper":
        pytest.skip("the sm_90 kernel does not run here")
    layout = REAL.layout
    cut = [layout.prefix, layout.context_tokens, layout.current_tokens]
    keys, values = key.split(cut, 2), value.split(cut, 2)
    pools = [kernels.prepare_context(p[1], grid=layout.context_grid, tile=REAL.tile) for p in (keys, values)]
    with kernels.using(name):
        whole = kernels.sparse_attention(query, key, value, **REAL.grids)
        for given in (pools, pools[:1], pools):
            assert torch.equal(whole, kernels.sparse_attention_prepared(query, keys, values, *given, **REAL.grids))


def test_dense_by_the_cost_model_is_what_torch_computes():
    query, key, value = SITES["aligned"].tensors(torch.bfloat16, "cuda")
    for part in (query, query.transpose(1, 2).contiguous().transpose(1, 2)):
        for _ in range(2):
            ours = kernels.sparse_attention(part, key, value, **SITES["aligned"].grids)
            assert torch.equal(ours, F.scaled_dot_product_attention(part, key, value))


def test_lists_may_change_between_graph_replays():
    site = SITES["aligned"]
    tensors = site.tensors(torch.bfloat16, "cuda")
    index, count = random_lists(site, "all", "cuda")
    with kernels.using("portable"):
        run = lambda: kernels.block_sparse_attention(*tensors, index, count, **site.grids)  # noqa: E731
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        for kind in ("one", "mixed", "none"):
            fresh = random_lists(site, kind, "cuda", seed=3)
            index.copy_(fresh[0])
            count.copy_(fresh[1])
            graph.replay()
            assert torch.equal(captured, run())


def test_repeats_are_bitwise_equal():
    query, key, value = REAL.tensors(torch.bfloat16, "cuda")
    with kernels.using("portable"):
        first = kernels.sparse_attention(query, key, value, **REAL.grids)
        for _ in range(30):
            assert torch.equal(kernels.sparse_attention(query, key, value, **REAL.grids), first)


def test_blocks_that_are_not_listed_are_never_read():
    query, key, value = REAL.tensors(torch.bfloat16, "cuda")
    index, count = random_lists(REAL, "one", "cuda")
    index[...] = 3
    with kernels.using("portable"):
        clean = kernels.block_sparse_attention(query, key, value, index, count, **REAL.grids)
        unused = ~reference.token_weights(index, count, REAL.layout).any(2).any(1)[0]
        for part in (key, value):
            part[:, :, unused] = torch.nan
        assert torch.equal(kernels.block_sparse_attention(query, key, value, index, count, **REAL.grids), clean)


def test_offsets_beyond_32_bits():
    """Keys of 2.3e9 elements in [batch, tokens, heads, dim] order: the last head must equal a small copy of itself."""
    heads, grid = 256, (45, 40, 40)
    site = Site((1, 40, 40), grid, (4, 8, 4), heads=heads, key_heads=heads, head_dim=128)
    assert site.layout.key_tokens * heads * 128 > 2**31
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    shape = (1, site.layout.key_tokens, heads, 128)
    key, value = (torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_().transpose(1, 2) for _ in range(2))
    query = torch.randn(1, 1600, heads, 128, dtype=torch.bfloat16, device="cuda").transpose(1, 2)
    with kernels.using("portable"):
        whole = kernels.sparse_attention(query, key, value, density=0.1, **site.grids)
        last = [part[:, -1:].contiguous() for part in (query, key, value)]
        alone = kernels.sparse_attention(*last, density=0.1, **site.grids)
    assert torch.equal(whole[:, -1:], alone)


class Attention(torch.nn.Module):
    def forward(self, query, key, value):
        return kernels.sparse_attention(query, key, value, **SITES["prefill"].grids)


def decomposed(tensors):
    """An exported attention whose operator was replaced by the portable steps, and what it should return."""
    from lightint_compile.kernels.decompositions import portable_table

    exported = torch.export.export(Attention(), tensors, strict=False).run_decompositions(portable_table())
    with kernels.using("portable"):
        return exported, Attention()(*tensors)


def test_inductor_compiles_the_steps_into_its_code():
    """Decomposed, the operator becomes Triton launches inside Inductor's output rather than a call back to Python."""
    tensors = SITES["prefill"].tensors(torch.bfloat16, "cuda")
    exported, expected = decomposed(tensors)
    assert torch.equal(torch.compile(exported.module(), fullgraph=True)(*tensors), expected)


def archive(module):
    program = Path(__file__).parents[1] / "support/gpu_archive.py"
    return subprocess.run([sys.executable, str(program), module], capture_output=True, text=True, timeout=300)


def test_an_archive_carries_the_kernels():
    if archive("plain").returncode != 0:
        pytest.skip("AOTInductor archives of plain attention do not work on this machine")
    done = archive("sparse")
    assert done.returncode == 0, done.stderr[-3000:]


def test_memory_checker_finds_nothing():
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        pytest.skip("compute-sanitizer is not installed")
    program = Path(__file__).parents[1] / "support/gpu_program.py"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, str(program)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTORCH_")}  # its own allocator
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=plain)
    assert done.returncode == 0, done.stdout[:1500] + done.stdout[-1500:] + done.stderr[-3000:]
