"""Every way of writing to a tensor between two calls, and to a module; most do not raise a version counter."""

from __future__ import annotations

import ctypes
import gc
import math
import threading
from collections.abc import Callable

import torch
import torch.utils.dlpack
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter


def _data_add(tensor: Tensor, value: Tensor) -> None:
    tensor.data += value - tensor.data


def _data_assign(tensor: Tensor, value: Tensor) -> None:
    tensor.data = value


def _item(tensor: Tensor, value: Tensor) -> None:
    tensor[...] = value


def _swap(tensor: Tensor, value: Tensor) -> None:
    other = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    try:
        torch.utils.swap_tensors(tensor, other)
    except RuntimeError:  # weak references of what is garbage already do not count
        gc.collect()
        torch.utils.swap_tensors(tensor, other)


def _storage(tensor: Tensor, value: Tensor) -> None:
    """Through a second tensor on the same storage, with a version counter of its own."""
    other = torch.empty(0, dtype=tensor.dtype)
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    other.set_(tensor.untyped_storage(), *place).copy_(value)


def _storage_bytes(tensor: Tensor, value: Tensor) -> None:
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).clone()
    whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(value)
    tensor.untyped_storage().copy_(whole.untyped_storage())


def _memory(tensor: Tensor, value: Tensor) -> None:
    """As a foreign library writes that was given the address; strided tensors through a view of numpy."""
    if not tensor.is_contiguous():
        return _numpy(tensor, value)
    value = value.contiguous()
    ctypes.memmove(tensor.data_ptr(), value.data_ptr(), value.numel() * value.element_size())


def _numpy(tensor: Tensor, value: Tensor) -> None:
    tensor.detach().numpy()[...] = value.numpy()


def _dlpack(tensor: Tensor, value: Tensor) -> None:
    torch.utils.dlpack.from_dlpack(tensor.detach()).copy_(value)


def _inference(tensor: Tensor, value: Tensor) -> None:
    with torch.inference_mode():
        tensor.copy_(value)


def _preserved(tensor: Tensor, value: Tensor) -> None:
    with _unsafe_preserve_version_counter(tensor):
        tensor.copy_(value)


def _thread(tensor: Tensor, value: Tensor) -> None:
    def work() -> None:
        with torch.no_grad():
            tensor.copy_(value)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


#: How values reach a tensor: ``way(tensor, value)``, with gradients off.
WAYS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "copy": lambda tensor, value: tensor.copy_(value),
    "item": _item,
    "data-add": _data_add,
    "data-copy": lambda tensor, value: tensor.data.copy_(value),
    "data-assign": _data_assign,
    "detached": lambda tensor, value: tensor.detach().copy_(value),
    "view": lambda tensor, value: tensor.unsqueeze(0).copy_(value),
    "out": lambda tensor, value: torch.mul(value, 1, out=tensor),
    "foreach": lambda tensor, value: torch._foreach_copy_([tensor], [value]),
    "set": lambda tensor, value: tensor.set_(value),  # type: ignore[call-overload]
    "swap": _swap,
    "numpy": _numpy,
    "dlpack": _dlpack,
    "storage": _storage,
    "storage-bytes": _storage_bytes,
    "memory": _memory,
    "inference": _inference,
    "version-kept": _preserved,
    "thread": _thread,
}


def _fresh(old: Tensor, draw: torch.Generator) -> Tensor:
    if old.is_floating_point():
        return torch.randn(old.shape, generator=draw).to(old.dtype)
    return torch.randint(0, 16, old.shape, generator=draw).to(old.dtype)


def _swapped(old: Tensor, draw: torch.Generator) -> Tensor:
    """Two elements change places: every sum over the tensor stays what it was."""
    flat = old.flatten().clone()
    if len(flat) > 1:
        flat[[0, -1]] = flat[[-1, 0]]
    return flat.view(old.shape)


def _element(old: Tensor, draw: torch.Generator) -> Tensor:
    flat = old.flatten().clone()
    flat[torch.randint(0, len(flat), (1,), generator=draw)] = 3
    return flat.view(old.shape)


def _not_a_number(old: Tensor, draw: torch.Generator) -> Tensor:
    return torch.full_like(old, math.nan) if old.is_floating_point() else _fresh(old, draw)


#: What is written: ``value(old, draw)``; some are chosen to deceive a checksum.
VALUES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "fresh": _fresh,
    "scaled": lambda old, draw: old * 2 if old.is_floating_point() else _fresh(old, draw),
    "negated": lambda old, draw: -old if old.is_floating_point() else _fresh(old, draw),
    "flipped": lambda old, draw: old.flip(0) if old.dim() < 2 else old.flip(-2),
    "swapped": _swapped,
    "element": _element,
    "zero": lambda old, draw: torch.zeros_like(old),
    "nan": _not_a_number,
    "same": lambda old, draw: old.clone(),
}


def write(tensor: Tensor, way: str, value: str, seed: int) -> None:
    """Write to ``tensor``, as the caller of a model does."""
    with torch.no_grad():
        new = VALUES[value](tensor.detach(), torch.Generator().manual_seed(seed))
        if way in ("data-assign", "set", "swap"):  # they put another tensor in its place
            new = new.as_strided(new.shape, new.stride()).clone()
        WAYS[way](tensor, new)


def _noisy(module: nn.Module, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    state = module.state_dict().items()
    return {name: value.detach() + _noise(value, draw) for name, value in state}


def _noise(value: Tensor, draw: torch.Generator) -> Tensor:
    return 0.3 * torch.randn(value.shape, generator=draw).to(value.dtype) if value.is_floating_point() else value * 0


def _merge(module: nn.Module, seed: int) -> None:
    """As adapters are merged."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += _noise(parameter.data, draw)


def _average(module: nn.Module, seed: int) -> None:
    """As a moving average of weights is put in force."""
    new = _noisy(module, seed)
    for name, parameter in module.named_parameters():
        parameter.data.copy_(new[name])


def _vector(module: nn.Module, seed: int) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector * 1.3, module.parameters())


def _replace(module: nn.Module, seed: int) -> None:
    """Every weight is another parameter."""
    draw = torch.Generator().manual_seed(seed)
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(parameter.detach() + _noise(parameter, draw), parameter.requires_grad))


def _there_and_back(module: nn.Module, seed: int) -> None:
    dtype = next(module.parameters()).dtype
    module.to(torch.float32 if dtype is torch.float64 else torch.float64).to(dtype)
    _merge(module, seed)


def _optimise(module: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    parameters = list(module.parameters())
    for parameter in parameters:
        with torch.enable_grad():
            parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    torch.optim.SGD(parameters, lr=0.3).step()
    for parameter in parameters:
        parameter.grad = None


#: How a whole module is written to: ``way(module, seed)``, with gradients off.
MODULE_WAYS: dict[str, Callable[[nn.Module, int], object]] = {
    "load": lambda module, seed: module.load_state_dict(_noisy(module, seed)),
    "load-assign": lambda module, seed: module.load_state_dict(_noisy(module, seed), assign=True),
    "merge": _merge,
    "average": _average,
    "vector": _vector,
    "replace": _replace,
    "there-and-back": _there_and_back,
    "apply": lambda module, seed: module._apply(lambda t: t * 1.25 if t.is_floating_point() else t),
    "optimise": _optimise,
}
