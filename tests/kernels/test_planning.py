"""Calls that are planned once: repeats, what a plan depends on, prepared context, and who still sees the operator."""

import pytest
import torch
from attention_cases import SITES, Site
from torch.fx.experimental.proxy_tensor import make_fx

from lightint_compile import kernels
from lightint_compile.errors import InputError
from lightint_compile.kernels import cost, ops, planning

SITE = SITES["ragged"]
OPERATOR = getattr(torch.ops, ops.NAMESPACE).sparse_attention.default


@pytest.fixture(autouse=True)
def fresh():
    planning.forget()
    yield
    planning.forget()


def segments(key, value, site=SITE):
    layout = site.layout
    cut = [layout.prefix, layout.context_tokens, layout.current_tokens]
    return key.split(cut, 2), value.split(cut, 2)


def test_a_repeated_call_makes_no_second_plan():
    for seed in range(3):
        query, key, value = SITE.tensors(torch.float32, seed=seed)
        with kernels.using("gather"):
            ours = kernels.sparse_attention(query, key, value, **SITE.grids)
        with kernels.using("reference"):
            torch.testing.assert_close(ours, kernels.sparse_attention(query, key, value, **SITE.grids))
    assert len(planning._plans) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"density": 0.9},
        {"neighbours": 2},
        {"scale": 0.5},
        {"tile": (1, 4, 4)},
        {"protect_frames": 8},
        {"coverage": 0.2},
    ],
)
def test_another_setting_is_another_plan(change):
    tensors = SITE.tensors(torch.float64)
    with kernels.using("reference"):
        first = kernels.sparse_attention(*tensors, **SITE.grids)
        again = kernels.sparse_attention(*tensors, **(SITE.grids | change))
        planning.forget()
        assert torch.equal(kernels.sparse_attention(*tensors, **(SITE.grids | change)), again)
    assert not torch.equal(first, again)


def test_bad_input_is_refused_each_time_and_after_good_input():
    query, key, value = SITE.tensors(torch.float32)
    kernels.sparse_attention(query, key, value, **SITE.grids)
    for _ in range(2):
        with pytest.raises(InputError, match="length"):
            kernels.sparse_attention(query, key[:, :, 1:], value[:, :, 1:], **SITE.grids)
        with pytest.raises(InputError, match="dtype"):
            kernels.sparse_attention(query, key.double(), value, **SITE.grids)


@pytest.mark.parametrize("implementation", ["dense", "reference", "gather"])
def test_prepared_context_gives_what_unprepared_context_gives(implementation):
    query, key, value = SITE.tensors(torch.float64)
    keys, values = segments(key, value)
    pools = [kernels.prepare_context(p[1], grid=SITE.layout.context_grid, tile=SITE.tile) for p in (keys, values)]
    with kernels.using(implementation):
        whole = kernels.sparse_attention(query, key, value, density=0.4, neighbours=0, **SITE.grids)
        for given in (pools[:1], (pools[0], *pools)):
            settings = {"density": 0.4, "neighbours": 0, **SITE.grids}
            assert torch.equal(kernels.sparse_attention_prepared(query, keys, values, *given, **settings), whole)


def test_the_prepared_pool_is_what_decides():
    """Another pool selects other blocks: the operator does not pool the context again."""
    query, key, value = SITE.tensors(torch.float64)
    keys, values = segments(key, value)
    pool = kernels.prepare_context(keys[1], grid=SITE.layout.context_grid, tile=SITE.tile)
    with kernels.using("reference"):
        right = kernels.sparse_attention_prepared(query, keys, values, pool, density=0.4, neighbours=0, **SITE.grids)
        other = torch.cat([-9 * pool[..., :-1], pool[..., -1:]], -1)
        wrong = kernels.sparse_attention_prepared(query, keys, values, other, density=0.4, neighbours=0, **SITE.grids)
    assert not torch.equal(right, wrong)


@pytest.mark.parametrize("spoil", [lambda p: p[:, :, 1:], lambda p: p.half(), lambda p: p[0], lambda p: p.to("meta")])
def test_a_pool_of_something_else_is_refused(spoil):
    query, key, value = SITE.tensors(torch.float32)
    keys, values = segments(key, value)
    pool = spoil(kernels.prepare_context(keys[1], grid=SITE.layout.context_grid, tile=SITE.tile))
    with pytest.raises(InputError, match="context_pool"):
        kernels.sparse_attention_prepared(query, keys, values, pool, **SITE.grids)


def attend(query, key, value):
    return kernels.sparse_attention(query, key, value, **SITE.grids)


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_a_tracer_still_sees_the_operator(pre_dispatch):
    graph = make_fx(attend, pre_dispatch=pre_dispatch)(*SITE.tensors(torch.float32)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [OPERATOR]


def test_export_still_sees_the_operator():
    class Attention(torch.nn.Module):
        def forward(self, query, key, value):
            return attend(query, key, value)

    exported = torch.export.export(Attention(), SITE.tensors(torch.float32), strict=False)
    assert OPERATOR in [node.target for node in exported.graph.nodes]


def test_a_gradient_is_refused_not_silently_given():
    query, key, value = (part.requires_grad_() for part in SITE.tensors(torch.float32))
    with pytest.raises(InputError, match="no gradient"):
        attend(query, key, value).sum().backward()


def test_modes_and_transforms_see_the_operator():
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    tensors = SITE.tensors(torch.float32)
    with Watch():
        attend(*tensors)
    assert OPERATOR in seen


def test_the_cost_model_is_asked_again_when_the_context_grows(monkeypatch):
    """One graph serves every context length; whether it skips is decided where the length is known: at the call."""
    monkeypatch.setattr(cost, "prefers_sparse", lambda *arguments, host_hidden: arguments[6] > 400)
    short, long = SITES["ragged"], Site((3, 5, 7), (14, 5, 7), (2, 4, 4), prefix=5, heads=4, key_heads=2)
    for site, dense in ((short, True), (long, False), (short, True)):
        query, key, value = site.tensors(torch.float64)
        ours = kernels.sparse_attention(query, key, value, density=0.3, neighbours=0, **site.grids)
        whole = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        assert (float((ours - whole).abs().max()) < 1e-9) is dense


def test_a_captured_graph_is_decided_apart(monkeypatch):
    """A graph that is being captured will be replayed without the host: its plan is not that of an ordinary call."""
    hidden = []
    monkeypatch.setattr(cost, "prefers_sparse", lambda *arguments, host_hidden: hidden.append(host_hidden) or True)
    monkeypatch.setattr(planning, "_capturing", lambda query: len(hidden) == 1)
    for _ in range(3):
        kernels.sparse_attention(*SITE.tensors(torch.float32), **SITE.grids)
    assert hidden == [False, True]


@pytest.mark.parametrize("min_tokens", [0, 1, 285, 286])
def test_a_caller_who_has_decided_is_not_asked_about(min_tokens, monkeypatch):
    """The site has 5 tokens of text and 280 visual ones."""
    monkeypatch.setattr(cost, "prefers_sparse", lambda *arguments, **_: pytest.fail("the cost model was asked"))
    query, key, value = SITE.tensors(torch.float64)
    settings = {"density": 0.3, "neighbours": 0, "min_tokens": min_tokens, **SITE.grids}
    ours = kernels.sparse_attention(query, key, value, **settings)
    with kernels.using("dense" if SITE.layout.key_tokens < min_tokens else "gather"):
        assert torch.equal(kernels.sparse_attention(query, key, value, **settings), ours)
    keys, values = segments(key, value)
    pool = kernels.prepare_context(keys[1], grid=SITE.layout.context_grid, tile=SITE.tile)
    torch.testing.assert_close(kernels.sparse_attention_prepared(query, keys, values, pool, **settings), ours)


def test_a_negative_number_of_keys_is_refused():
    with pytest.raises(InputError, match="min_tokens"):
        kernels.sparse_attention(*SITE.tensors(torch.float32), **SITE.grids, min_tokens=-1)


@pytest.mark.parametrize("name", ["gather", "reference"])
def test_a_list_that_may_hold_every_block_is_no_reason_for_dense_attention(name):
    """Only a budget of all blocks is: on a small grid the neighbours of a corner are fewer than their bound."""
    site = SITES["prefill"]
    width = site.layout.list_width(0.3, 0, 1)
    assert site.layout.budget(0.3) < width == site.layout.key_blocks
    tensors = site.tensors(torch.float32)
    with kernels.using(name):
        ours = kernels.sparse_attention(*tensors, **site.grids)
    with kernels.using("dense"):
        assert not torch.allclose(kernels.sparse_attention(*tensors, **site.grids), ours, rtol=0.1)
