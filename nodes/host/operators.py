"""ComfyUI's layers, which our networks are built from so that it can move, cast and patch their weights."""

import functools
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ...fantasyid_core.dit.block import Compute
from .compat import patched_when_used

_NAMES = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "GroupNorm", "LayerNorm")
_TWINS = {
    getattr(nn, name): getattr(comfy.ops.manual_cast, name)
    for name in (*_NAMES, "RMSNorm", "Embedding")
    if hasattr(nn, name) and hasattr(comfy.ops.manual_cast, name)
}


class Operators(comfy.ops.manual_cast):
    """ComfyUI's layers, which cast their weights to their input's device and type: partial loading, storage in fp8 and
    LoRA build on that.
    """

    class Linear(comfy.ops.manual_cast.Linear):
        """With dynamic VRAM, ComfyUI's own has no weight until it is loaded; one that loads by itself has, as all have
        without, so that what is loaded can be checked before. Built on the meta device, none takes memory.
        """

        def _load_from_state_dict(self, *args: Any) -> None:
            super()._load_from_state_dict(*args)


def with_weights(layer: nn.Linear, device: torch.device, dtype: torch.dtype, fp8: bool, compute: Compute) -> Tensor:
    """`compute` on a linear layer's weight and bias as the host has them: from wherever it holds them, patched by it.

    They come in `dtype`; with `fp8`, a weight that is stored in fp8 comes so, unless something patches it on the way.
    """
    comfy.ops.run_every_op()
    stored = layer.weight.dtype
    cast = stored if fp8 and stored == torch.float8_e4m3fn and not patched_when_used(layer) else dtype
    weight, bias, stream = comfy.ops.cast_bias_weight(
        layer, dtype=cast, device=device, bias_dtype=dtype, offloadable=True
    )
    out = compute(weight, bias)
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return out


def to_host_operators(module: nn.Module) -> list[str]:
    """Give every layer the host's class that computes the same; parameters and their names stay.

    Such an operator casts its weights to its input's device and type, which is what partial loading, fp8 storage and
    LoRA build on.

    Returns:
        Names of the modules that hold parameters of their own but have no twin ("" is `module` itself). Under partial
        loading these stay where they are: their `forward` must move what it uses to its input's device.
    """
    left = []
    for name, layer in module.named_modules():
        if isinstance(layer, comfy.ops.CastWeightBiasOp):
            continue
        operator = _operator(type(layer))
        if operator is not None:
            layer.__class__ = operator
            layer.weight_function, layer.bias_function = [], []  # the class's own lists would be shared by all layers
            if not hasattr(layer, "bias"):
                layer.bias = None  # the host's cast asks for it
        elif next(layer.parameters(recurse=False), None) is not None:
            left.append(name)
    return left


@functools.cache
def _operator(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The host's twin of a layer class, under the class itself where it is a subclass that adds to `forward`.

    A subclass that replaces `forward` without calling the one below would bypass the host's cast: it has no twin.
    """
    plain = next((base for base in kind.__mro__ if base in _TWINS), None)
    if plain is None or plain is kind:
        return _TWINS.get(kind)
    above = kind.__mro__[: kind.__mro__.index(plain)]
    forwards = [base.__dict__["forward"] for base in above if "forward" in base.__dict__]
    if any("__class__" not in forward.__code__.co_freevars for forward in forwards):  # no super() in it
        return None
    return type(kind.__name__, (kind, _TWINS[plain]), {})
