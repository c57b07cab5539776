"""A decoder's modules rebuilt for streaming: same weights and forwards, parts that look at earlier frames replaced.

Every module has to be known, by its exact class: of a class that nobody looked at, none can say whether its forward
mixes frames. Classes of libraries are named, so that nothing is imported for their sake.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from lightint_compile.errors import InputError
from lightint_compile.integrations.video_decoder.parts import CausalConv, PackedFrames, PairedFrames, PastAttention
from lightint_compile.integrations.video_decoder.tape import Tape

WAN = "diffusers.models.autoencoders.autoencoder_kl_wan"
HUNYUAN = "diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15"

Rule = Callable[[nn.Module, str, Tape], nn.Module]
"""What stands for a module, whose children stand for those of the library's already; by its name, on a tape.

Raises:
    InputError: decoding in chunks would not be equal to decoding at once.
"""


def rebuilt(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    """A module for streaming, which shares parameters with the one given and leaves it as it is.

    Args:
        name: its path in the VAE, for states and errors.

    Raises:
        InputError: it, or a module in it, is not known, or looks at later frames.
    """
    _check_own_forward(module, name)
    rule = RULES.get(class_name(module))
    if rule is None:
        raise refused(module, name, "its class is not known here, so it may mix frames", "decode at once")
    # that convolution pads for the one inside of it, which alone would be one that sees no padding
    return rule(module if rule is _hunyuan_conv else _with_rebuilt_children(module, name, tape), name, tape)


def _with_rebuilt_children(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    twin, children = copy.copy(module), module._modules.items()
    twin._modules = {key: child if child is None else rebuilt(child, f"{name}.{key}", tape) for key, child in children}
    return twin


def class_name(module: nn.Module) -> str:
    """The full name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def refused(module: nn.Module, name: str, why: str, fix: str) -> InputError:
    """The error of a part whose result for a chunk is not that of the whole video."""
    where = f"{name} ({type(module).__name__})"
    return InputError("this decoder cannot be streamed", where=where, why=why, fix=fix)


def _check_own_forward(module: nn.Module, name: str) -> None:
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        why = "its calls are replaced or have hooks, as offloading and tiling wrappers do"
        raise refused(module, name, why, "give the VAE without them")


def _kept(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    """A module that treats each frame alone, or only calls its children."""
    return module


def _dropout(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    if module.training and isinstance(module, nn.Dropout) and module.p:
        raise refused(module, name, "it drops at random, because the module is in training mode", "call vae.eval()")
    return module


def _norm_over_frames(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    why = "its statistics are taken over all frames of a call, later ones included"
    raise refused(module, name, why, "decode at once, or use a model whose norms are over channels")


def _plain_conv(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    assert isinstance(module, nn.Conv3d)
    if module.kernel_size[0] != 1 or module.stride[0] != 1 or module.padding not in ((0, 0, 0), "valid"):
        why = f"it is not causal: kernel {module.kernel_size}, stride {module.stride}, padding {module.padding}"
        raise refused(module, name, f"{why}; it sees later frames", "decode at once")
    return module


def _wan_conv(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    assert isinstance(module, nn.Conv3d)
    return _causal(module, module, module._padding, "constant", name, tape)  # type: ignore[arg-type]


def _hunyuan_conv(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    conv, padding, mode = module.conv, module.time_causal_padding, str(module.pad_mode)
    assert isinstance(conv, nn.Conv3d)
    return _causal(module, conv, padding, mode, name, tape)  # type: ignore[arg-type]


def _causal(
    module: nn.Module, conv: nn.Conv3d, padding: tuple[int, ...], mode: str, name: str, tape: Tape
) -> nn.Module:
    left, right, top, bottom, front, back = padding
    same = (left, top, front, back) == (right, bottom, conv.kernel_size[0] - 1, 0)
    ones = {*conv.stride, *conv.dilation} == {1} and conv.padding == (0, 0, 0)
    if not same or not ones or mode not in ("constant", "replicate"):
        why = f"padding {tuple(padding)} ({mode}), stride {conv.stride}, dilation {conv.dilation}"
        raise refused(module, name, f"it is not a causal convolution of stride 1: {why}", "decode at once")
    return CausalConv(conv, (top, left), mode, name, tape)


def _wan_resample(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    if module.mode == "upsample3d":
        return PairedFrames(module, tape)
    if module.mode in ("upsample2d", "none"):
        return module
    raise refused(module, name, f"{module.mode!r} is no part of a decoder", "decode at once")


def _hunyuan_upsample(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    # the library computes the flag with NumPy, whose booleans are tensors to Dynamo
    module.add_temporal_upsample = bool(module.add_temporal_upsample)  # type: ignore[assignment]
    return PackedFrames(module, tape) if module.add_temporal_upsample else module


def _hunyuan_attention(module: nn.Module, name: str, tape: Tape) -> nn.Module:
    return PastAttention(module, name, tape)


def _named(file: str, rules: dict[str, Rule]) -> dict[str, Rule]:
    return {f"{file}.{name}": rule for name, rule in rules.items()}


_WAN: dict[str, Rule] = {
    "WanCausalConv3d": _wan_conv,
    "WanResample": _wan_resample,
    # norms are over channels, attention is of each frame alone
    **dict.fromkeys(("WanRMS_norm", "WanUpsample", "WanAttentionBlock", "DupUp3D"), _kept),
    **dict.fromkeys(("WanDecoder3d", "WanMidBlock", "WanResidualBlock", "WanUpBlock", "WanResidualUpBlock"), _kept),
}
_HUNYUAN: dict[str, Rule] = {
    f"HunyuanVideo15{name}": rule
    for name, rule in {
        "CausalConv3d": _hunyuan_conv,
        "Upsample": _hunyuan_upsample,
        "AttnBlock": _hunyuan_attention,
        **dict.fromkeys(("RMS_norm", "ResnetBlock", "MidBlock", "UpBlock3D", "Decoder3D"), _kept),
    }.items()
}
_TORCH: dict[type[nn.Module], Rule] = {
    nn.Conv3d: _plain_conv,
    nn.Dropout: _dropout,
    **dict.fromkeys((nn.Conv2d, nn.Identity, nn.ModuleList, nn.Sequential), _kept),
    **dict.fromkeys((nn.SiLU, nn.Mish, nn.GELU, nn.ReLU), _kept),
    **dict.fromkeys((nn.GroupNorm, nn.InstanceNorm3d), _norm_over_frames),
}
RULES: dict[str, Rule] = {
    **_named(WAN, _WAN),
    **_named(HUNYUAN, _HUNYUAN),
    **{f"{each.__module__}.{each.__qualname__}": rule for each, rule in _TORCH.items()},
}
"""What stands for a module, by the full name of its class."""
