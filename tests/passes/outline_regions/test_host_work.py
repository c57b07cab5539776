"""Small work on the host is cut into pieces of its own in programs that run on an accelerator, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.fx as fx
from torch import Tensor, nn

from lightint_compile import capture
from lightint_compile.passes.outline_regions import OutlineRegions
from lightint_compile.reporting.rundown import rundown

WIDTH = 16


class Model(nn.Module):
    """Layers on a device, tables and counters on the host."""

    def __init__(self, host: Callable[[Model, Tensor], Tensor], elements: int = WIDTH) -> None:
        super().__init__()
        self.host = host
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("scales", torch.rand(elements))

    def forward(self, video: Tensor) -> Tensor:
        table = self.host(self, video)
        for layer in self.layers:
            video = video + torch.tanh(layer(video) * table)
        return video


def from_a_buffer(model: Model, video: Tensor) -> Tensor:
    return torch.outer(torch.arange(video.shape[1]), model.scales).cos().to(video.device)


def a_number_of_the_host(model: Model, video: Tensor) -> Tensor:
    return 1 + model.scales.sum() / 3


def read_twice(model: Model, video: Tensor) -> Tensor:
    """The copy's operand is read by other work on the host."""
    table = model.scales.cos() + torch.arange(WIDTH)
    return table.to(video.device) * table.sum().to(video.device)


FOUND = [from_a_buffer, a_number_of_the_host, read_twice]


def constants_alone(model: Model, video: Tensor) -> Tensor:
    """Inductor makes these on the device."""
    return torch.arange(video.shape[1]).cos()[:, None].to(video.device)


def a_view_alone(model: Model, video: Tensor) -> Tensor:
    return model.scales[None].to(video.device)


def random_numbers(model: Model, video: Tensor) -> Tensor:
    return torch.rand(WIDTH).to(video.device)


def on_the_device(model: Model, video: Tensor) -> Tensor:
    return torch.arange(WIDTH, device=video.device).cos()


def large(model: Model, video: Tensor) -> Tensor:
    return model.scales.cos().reshape(-1, WIDTH).sum(0).to(video.device)


NOT_FOUND = [constants_alone, a_view_alone, random_numbers, on_the_device, large]


def outlined(host: Callable[[Model, Tensor], Tensor], device: str = "meta") -> fx.GraphModule:
    model = Model(host, 5 << 20 if host is large else WIDTH).eval().requires_grad_(False)
    model.layers.to(device)
    program = capture.trace(model, (torch.randn(1, 8, WIDTH, device=device),))
    OutlineRegions().run(program)
    return program.graph_module


def on_host(root: fx.GraphModule) -> list[fx.GraphModule]:
    regions = [region for _, region in root.named_children() if isinstance(region, fx.GraphModule)]
    return [region for region in regions if region.meta["lightint"].get("on_host")]


@pytest.mark.parametrize("host", FOUND, ids=lambda host: host.__name__)
def test_it_has_regions_of_its_own_which_the_plan_tells(host: Callable[[Model, Tensor], Tensor]) -> None:
    root = outlined(host)
    (region,) = on_host(root)
    for node in region.graph.find_nodes(op="placeholder"):
        assert not isinstance(node.meta["val"], Tensor) or node.meta["val"].device.type == "cpu"
    said = [line for _, line in rundown(root) if "on the host, operator by operator" in line]
    assert len(said) == 1 and not [child for child in root.children() if child is not region and _works_on_host(child)]


def _works_on_host(region: nn.Module) -> bool:
    """Whether a region computes on the host."""
    assert isinstance(region, fx.GraphModule)
    made = [node.meta.get("val") for node in region.graph.nodes if node.op == "call_function"]
    return any(isinstance(value, Tensor) and value.device.type == "cpu" for value in made)


@pytest.mark.parametrize("host", NOT_FOUND, ids=lambda host: host.__name__)
def test_what_a_compiler_does_well_or_must_keep_in_order_stays_with_the_rest(
    host: Callable[[Model, Tensor], Tensor],
) -> None:
    assert on_host(outlined(host)) == []


@pytest.mark.parametrize("host", FOUND, ids=lambda host: host.__name__)
def test_a_program_on_the_host_alone_is_cut_as_ever(host: Callable[[Model, Tensor], Tensor]) -> None:
    assert on_host(outlined(host, "cpu")) == []
