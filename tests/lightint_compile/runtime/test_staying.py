"""What stays from call to call: objects, and not addresses."""

from __future__ import annotations

import copy
import gc
import io

import torch

from lightint_compile.runtime.staying import Staying


def test_an_object_stays_from_its_second_call_on() -> None:
    staying, text = Staying(), torch.ones(3)
    assert not staying.arrive([text, 1, torch.nn.Parameter(torch.ones(2))]) and staying.serial_of(text) is None
    assert not staying.arrive([text])
    serial = staying.serial_of(text)
    assert serial is not None and staying.serial_of(text[1:]) == serial, "and so do views of it"
    assert not staying.arrive([torch.ones(3)]) and staying.serial_of(text) is None, "it is not in this call"


def test_one_that_lies_elsewhere_has_moved() -> None:
    staying, text = Staying(), torch.ones(3)
    for _ in range(2):
        staying.arrive([text])
    text.set_(torch.zeros(3))
    assert staying.arrive([text]) and not staying.arrive([text])


def test_copies_and_files_of_a_tensor_are_others() -> None:
    staying, text = Staying(), torch.ones(3)
    for _ in range(2):
        staying.arrive([text])
    file = io.BytesIO()
    torch.save(text, file)
    file.seek(0)
    for other in (copy.deepcopy(text), torch.load(file, weights_only=True), text.clone()):
        assert other.equal(text)
        staying.arrive([other])
        assert staying.serial_of(other) is None


def test_nothing_is_remembered_of_what_is_gone() -> None:
    staying = Staying()
    for _ in range(50):
        text = torch.ones(3)
        for _ in range(3):
            staying.arrive([text])
    gc.collect()
    assert len(staying._places) == 1
