"""Layouts of watched arguments are compared at once, and no change of one is missed."""

from __future__ import annotations

from random import Random

import pytest
import torch

from lightint_compile.runtime import content_check, content_parts, content_sums
from lightint_compile.runtime.content_check import Check, Content, Watch
from lightint_compile.runtime.content_parts import Part
from lightint_compile.runtime.content_sums import layout_of

CHANGES = {
    "transposed": lambda x: x.t(),
    "narrowed": lambda x: x[:2],
    "of other sizes": lambda x: x.reshape(2, 8),
    "conjugated": lambda x: x.conj(),
    "of another dtype": lambda x: x.real.contiguous(),
    "seen as real": lambda x: torch.view_as_real(x),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "a number": lambda x: 3,
    "itself": lambda x: x,
    "a copy": lambda x: x.clone(),
    "with gaps": lambda x: torch.cat([x, x], 1)[:, :4],
    "sparse": lambda x: x.to_sparse(),
    "with a gradient": lambda x: x.detach().clone().requires_grad_(),
    "negative": lambda x: torch.complex(x.real, x.imag).conj().imag[:, None].squeeze(1),
}


def surveyed(part: Part, values: list[object]) -> tuple[object, ...]:
    survey = part.survey(values)
    return survey.layouts, [group.slots for group in survey.groups], survey.blocked


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("first", CHANGES)
@pytest.mark.parametrize("second", CHANGES)
def test_a_survey_is_that_of_the_values_whatever_came_before(first, second, grad) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4, dtype=torch.complex64)
    part = Part(range(3))
    with torch.set_grad_enabled(grad):
        for change in (first, second, first):
            values = [torch.ones(3), CHANGES[change](x), 2.5]
            assert surveyed(part, values) == surveyed(Part(range(3)), values)


def test_an_unchanged_layout_is_told_without_looking_at_each(monkeypatch) -> None:
    looked = []
    monkeypatch.setattr(
        "lightint_compile.runtime.content_parts.layout_of", lambda tensor: looked.append(tensor) or layout_of(tensor)
    )
    watch, values = Watch(range(3)), [torch.ones(3), torch.zeros(2, 2), 7]
    contents = [Check(values, watch).content((0, 1, 2)) for _ in range(3)]
    assert len(looked) == 2 and contents[0] == contents[1] == contents[2]
    values[1].data.add_(1)
    assert Check(values, watch).content((0, 1, 2)) != contents[0] and len(looked) == 2


def test_one_tensor_twice_is_looked_at_each_time() -> None:
    x = torch.ones(3)
    part = Part(range(2))
    assert surveyed(part, [x, x]) == surveyed(part, [x, x]) == surveyed(Part(range(2)), [x, x])


@pytest.fixture
def as_on_a_device(monkeypatch) -> list[tuple[str, int]]:
    """Memory is read as on a device, whose numbers are waited for; what happens, in order, and to how many tensors."""
    happened = list[tuple[str, int]]()
    monkeypatch.setattr(content_sums, "_is_read_at_once", lambda device: False)
    monkeypatch.setattr(content_parts, "WORTH", 0)
    survey, sums, transfer = Part.survey, content_sums.device_sums, content_check.together
    spied = {
        (Part, "survey"): lambda part, values: happened.append(("looked at", len(values))) or survey(part, values),
        (content_sums, "device_sums"): lambda memory: happened.append(("read", len(memory.tensors))) or sums(memory),
        (content_check, "together"): lambda parts: happened.append(("came", len(parts))) or transfer(parts),
    }
    for (home, name), spy in spied.items():
        monkeypatch.setattr(home, name, spy)
    return happened


def test_the_largest_tensors_are_read_while_the_others_are_looked_at(as_on_a_device) -> None:
    values = [torch.ones(4), torch.ones(900), "text", torch.ones(800), torch.ones(5), torch.ones(700), 3]
    watch = Watch(range(len(values)))
    contents = [Check(values, watch).content(watch.positions) for _ in range(3)]
    first = [("looked at", 7), ("read", 5), ("came", 1)]
    later = [("looked at", 2), ("read", 2), ("looked at", 5), ("read", 3), ("came", 2)]
    assert as_on_a_device == [*first, *later, *later], "one transfer a call, whatever is started in parts"
    assert contents[0] == contents[1] == contents[2]


def drawn_values(random: Random) -> list[object]:
    """Tensors of very different sizes, among them none at all, and numbers in between."""
    sizes = [random.choice([0, 1, 3, 64, 500, 4096]) for _ in range(random.randint(1, 8))]
    return [torch.randn(size) if random.random() < 0.8 else random.choice([1, 2.5, "a"]) for size in sizes]


def changed(values: list[object], random: Random) -> None:
    """One value is written to, replaced or seen in another way, or nothing happens."""
    place = random.randrange(len(values))
    value = values[place]
    if not isinstance(value, torch.Tensor):
        values[place] = random.choice([1, 2.5, "a", torch.ones(3)])
    elif value.numel() and not value.is_sparse:
        ways = {
            "written to": lambda: value.data.view(-1)[-1:].add_(1),
            "left": lambda: None,
            "copied": lambda: values.__setitem__(place, value.clone()),
            "of another dtype": lambda: values.__setitem__(place, value.to(torch.float64)),
            "larger": lambda: values.__setitem__(place, torch.cat([value, value])),
            "a number": lambda: values.__setitem__(place, 7),
            "not readable": lambda: values.__setitem__(place, torch.ones(2, 2).to_sparse()),
        }
        ways[random.choice(sorted(ways))]()


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.usefixtures("as_on_a_device")
def test_content_is_the_same_however_the_arguments_are_divided(seed) -> None:
    random = Random(seed)
    torch.manual_seed(seed)
    values = drawn_values(random)
    watch = Watch(range(len(values)))
    for _ in range(6):
        every = [watch.positions, *((position,) for position in watch.positions)]
        found = [Check(values, watch).content(positions) for positions in every]
        alone = Watch(range(len(values)))
        assert found == [Check(values, alone).content(positions) for positions in every]
        changed(values, random)


@pytest.mark.usefixtures("as_on_a_device")
def test_a_part_that_cannot_be_read_keeps_nothing_that_comes_from_it(monkeypatch) -> None:
    values = [torch.ones(900), torch.ones(4), torch.ones(5)]
    watch = Watch(range(3))
    known = Check(values, watch).content((0, 1, 2))
    real = content_sums.device_sums

    def failing(memory):
        if len(memory.tensors) == 2:
            raise RuntimeError("out of memory")
        return real(memory)

    monkeypatch.setattr(content_sums, "device_sums", failing)
    check = Check(values, watch)
    assert check.content((0, 1)) is None and "out of memory" in check.why_not((0, 1, 2))
    assert isinstance(check.content((0,)), Content) and not check.why_not((0,))
    monkeypatch.setattr(content_sums, "device_sums", real)
    assert Check(values, watch).content((0, 1, 2)) == known
