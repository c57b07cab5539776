"""Control flow and wrapped graphs in a compiled function: the rest is rewritten, and results are eager's."""

from __future__ import annotations

import pytest
import torch
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops.map import map as tensor_map
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

import lightint_compile
from lightint_compile import capture

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


def attention(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) / 4.0, -1) @ v


def branch(q, k, v, x):
    return torch.cond(x.sum() > 0, lambda t: t.sin(), lambda t: t.cos(), (attention(q, k, v),))


def branch_twice(q, k, v, x):
    a, condition = attention(q, k, v), x.sum() > 0
    b = torch.cond(condition, lambda t: t.sin(), lambda t: t.cos(), (a,))
    return b, torch.cond(condition, lambda t: t.sin(), lambda t: t.cos(), (b,)), attention(b, k, a)


def branch_in_a_branch(q, k, v, x):
    def outer(t):
        return torch.cond(x[0] > 0, lambda u: u.sin(), lambda u: u.tan(), (t,))

    return torch.cond(x.sum() > 0, outer, lambda t: t.cos(), (attention(q, k, v),))


def loop(q, k, v, x):
    start = torch.tensor(0), attention(q, k, v)
    return while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, attention(t, k, v)), start)[1] * 2


def scanned(q, k, v, x):
    a = attention(q, k, v)
    return scan(lambda carry, y: (carry + y, (carry * y).clone()), a[0], a)


def scanned_at_once(q, k, v, x):
    return associative_scan(lambda u, w: u + w, attention(q, k, v), 1, combine_mode="generic")


def mapped(q, k, v, x):
    return tensor_map(lambda t, w: t.sin() + w.sum(), attention(q, k, v), x)


def flex(q, k, v, x):
    return flex_attention(attention(q, k, v), k, v, score_mod=lambda s, b, h, i, j: s + (i - j) * x[0]) + 1


def flex_masked(q, k, v, x):
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, q.shape[2], k.shape[2], device="cpu")
    return flex_attention(attention(q, k, v), k, v, block_mask=mask) + 1


def checkpointed(q, k, v, x):
    return checkpoint(attention, q, k, v, use_reentrant=False) + checkpoint(attention, k, q, v, use_reentrant=True)


def checkpointed_write(q, k, v, x):
    def inside(a, b):
        scores = a @ b.transpose(-1, -2)
        scores.view(-1).add_(1)
        return torch.softmax(scores, -1) @ b

    return checkpoint(inside, q, k, use_reentrant=False)


compiled_once = torch.compiler.nested_compile_region(attention)


def region(q, k, v, x):
    return compiled_once(q, k, v) + compiled_once(k, q, v)


def number(q, k, v, x):
    return attention(q, k, v) * x.sum().item()


def counted(q, k, v, x):
    count = (x > -100).sum().item()
    torch._check(count <= 16)
    torch._check(count >= 0)
    return attention(q, k, v)[:, :, :count] * count


def picked(q, k, v, x):
    return attention(q, k, v), torch.nonzero(x > -100), x[x > 0]


FUNCTIONS = [
    branch,
    branch_twice,
    branch_in_a_branch,
    loop,
    scanned,
    scanned_at_once,
    mapped,
    flex,
    flex_masked,
    checkpointed,
    region,
    number,
    counted,
    picked,
]


def inputs():
    generator = torch.Generator().manual_seed(0)
    return (*(torch.randn(2, 4, 16, 16, generator=generator) for _ in range(3)), torch.tensor([0.5, -1.0, 2.0]))


def compiled(function, **options):
    torch._dynamo.reset()
    dynamic = options.pop("dynamic", None)
    chosen = {"preset": "exact", "delegate": "eager", "strict": True, **options}
    return torch.compile(function, backend="lightint", dynamic=dynamic, options=chosen)


@pytest.fixture(autouse=True)
def scalars_captured():
    with (
        torch.no_grad(),
        torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True),
    ):
        yield


CASES = [(function, None) for function in FUNCTIONS] + [(each, True) for each in (branch_twice, loop, flex, region)]
SLOW = {(each, True) for each in (branch_twice, loop, flex)} | {(flex, None), (branch_in_a_branch, None)}
"""What is of a kind with another case, or runs in another test."""


@pytest.mark.parametrize(
    ("function", "dynamic"), [pytest.param(*case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES]
)
def test_what_is_beside_it_is_rewritten(function, dynamic) -> None:
    q, k, v, x = inputs()
    made = compiled(function, dynamic=dynamic, require=["canonicalize-attention"])
    for condition in (x, -x):
        torch.testing.assert_close(made(q, k, v, condition), function(q, k, v, condition))


def test_a_write_inside_of_a_checkpoint_is_seen() -> None:
    made = compiled(checkpointed_write)
    torch.testing.assert_close(made(*inputs()), checkpointed_write(*inputs()))


def test_equal_control_flow_is_one_region_and_other_control_flow_another() -> None:
    def function(q, k, v, x):
        condition = x.sum() > 0
        a = torch.cond(condition, lambda t: t.sin(), lambda t: t.cos(), (attention(q, k, v),))
        b = torch.cond(condition, lambda t: t.sin(), lambda t: t.cos(), (a,))
        return torch.cond(condition, lambda t: t.cos(), lambda t: t.sin(), (b,))

    made = compiled(function)
    made(*inputs())
    remarks = lightint_compile.report(made).to_dict()["graphs"][0]["remarks"]
    assert [remark["args"]["calls"] for remark in remarks if remark["rule"] == "control"] == [2]


def test_control_flow_compiles_with_inductor() -> None:
    q, k, v, x = inputs()
    made = compiled(branch_in_a_branch, delegate="inductor")
    for condition in (x, -x):
        torch.testing.assert_close(made(q, k, v, condition), branch_in_a_branch(q, k, v, condition))


def test_a_checkpoint_is_not_in_the_normal_form() -> None:
    program = capture.trace(checkpointed, inputs())
    assert not [node for node in program.calls() if isinstance(node.target, torch._ops.HigherOrderOperator)]
