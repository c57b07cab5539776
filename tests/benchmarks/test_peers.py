"""Other packages' kernels get our lists in their layout: the packed form means the same attention."""

import pytest
import torch

from lightint_compile.bench import peers
from lightint_compile.bench.sites import Site, Tensors
from lightint_compile.errors import InputError
from lightint_compile.kernels.tiles import Layout

SITE = Site("ragged", Layout((4, 4), 12, 10, (4, 8, 4), 70), 0.4, 2, heads=2, head_dim=16)
TENSORS = Tensors.random(SITE, torch.device("cpu"), torch.float32)


def listed_attention(packed, block):
    """Attention over packed blocks in plain torch, empty slots at the end of a block left out."""
    query, key, value = (part.unflatten(2, (-1, block)) for part in (packed.query, packed.key, packed.value))
    out = torch.zeros_like(query)
    for head in range(query.shape[1]):
        for row in range(query.shape[2]):
            listed = packed.index[0, head, row, : packed.count[0, head, row]].long()
            real = (torch.arange(block) < packed.sizes[listed][:, None]).flatten()
            keys, values = (part[0, head, listed].flatten(0, 1)[real] for part in (key, value))
            out[0, head, row] = torch.softmax(query[0, head, row] @ keys.T * SITE.scale, -1) @ values
    return out.flatten(2, 3)


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("square", [False, True])
def test_packed_lists_mean_the_same_attention(block, square):
    packed = peers.Packed.of(SITE, TENSORS, block, square=square)
    packed.check(listed_attention(packed, block), SITE, TENSORS)
    if square:
        assert packed.query.shape == packed.key.shape


def test_a_result_that_differs_is_refused():
    packed = peers.Packed.of(SITE, TENSORS, 128)
    with pytest.raises(InputError, match="differs"):
        packed.check(listed_attention(packed, 128) * 1.1, SITE, TENSORS)


def test_a_missing_package_is_a_line():
    (line,) = [way for way in peers.ways(SITE, TENSORS) if isinstance(way, str) and way.startswith("fastvideo")]
    assert "not installed" in line or "does not run" in line
