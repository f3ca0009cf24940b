"""ComfyUI's layers, which our networks are built from so that it can move, cast and patch their weights."""

from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ...fantasyid_core.dit.block import Compute
from .compat import patched_when_used


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
