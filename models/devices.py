"""A device by name, checked before anything is loaded or allocated."""

from __future__ import annotations

import torch

from lightint_compile.errors import DeviceError


def checked_device(device: torch.device | str) -> torch.device:
    """The device, when this machine has it.

    Raises:
        DeviceError: a name that is no device, or CUDA where there is none.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise DeviceError(f"{device!r} is no device", why=why, fix='use "cpu" or "cuda"') from error
    if found.type != "cuda":
        return found
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found.index or 0) >= count:
        why = f"PyTorch sees {count} CUDA devices" if torch.version.cuda else "this PyTorch is built without CUDA"
        fix = "use device='cpu', or see `lightint doctor`"
        raise DeviceError(f"there is no device {found}", where="device", why=why, fix=fix)
    return found
