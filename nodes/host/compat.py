"""Where ComfyUI's versions differ, 0.3.75 to 0.33: one function each, and nowhere else a question about the version.

Every answer is looked up when it is asked for: ComfyUI switches dynamic VRAM on after it has imported its modules.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor, nn

from ...fantasyid_core.io import weights


def make_patcher(
    model: nn.Module, load_device: torch.device, offload_device: torch.device, dynamic: bool = True
) -> comfy.model_patcher.ModelPatcher:
    """The patcher that ComfyUI itself would make: since 0.16 there are two, and its start decides which.

    dynamic: False for one that holds its weights whole, which training asks for.
    """
    plain = comfy.model_patcher.ModelPatcher
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", plain) if dynamic else plain
    return kind(model, load_device=load_device, offload_device=offload_device)


def remember_loader(patcher: comfy.model_patcher.ModelPatcher, load: Callable, *arguments: Any) -> None:
    """Since 0.16 ComfyUI loads a model anew where it needs one of its own: Train LoRA, hooks, a second GPU.

    load: called with `arguments`, and `disable_dynamic=True` for a patcher that holds its weights whole.
    """
    patcher.cached_patcher_init = (load, arguments)


def make_clip(target: Any, model_options: Mapping[str, Any], dynamic: bool = True) -> comfy.sd.CLIP:
    """The `CLIP` of a target; before 0.16 none of them is dynamic and there is no such argument."""
    known = inspect.signature(comfy.sd.CLIP.__init__).parameters
    more = {"disable_dynamic": not dynamic} if "disable_dynamic" in known else {}
    return comfy.sd.CLIP(target, model_options=dict(model_options), **more)


def late_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the parameters that layers of ComfyUI get only with their weights (0.33, dynamic VRAM on), by name."""
    shapes = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and layer.weight is None:
            prefix = f"{name}." if name else ""
            shapes[f"{prefix}weight"] = torch.Size((layer.out_features, layer.in_features))
            if layer.comfy_need_lazy_init_bias:
                shapes[f"{prefix}bias"] = torch.Size((layer.out_features,))
    return shapes


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file or folder; dynamic VRAM (since 0.16) streams from the disk what its own reader has opened."""
    management = getattr(comfy, "memory_management", None)
    if not getattr(management, "aimdo_enabled", False):
        return weights.read(path)
    return weights.read(path, lambda file: comfy.utils.load_torch_file(str(file)))


def free_memory(patcher: comfy.model_patcher.ModelPatcher) -> float:
    """Bytes free on the patcher's device; since 0.16 those too that dynamic VRAM would give up for it."""
    if hasattr(patcher, "get_free_memory"):
        return patcher.get_free_memory(patcher.load_device)
    return comfy.model_management.get_free_memory(patcher.load_device)


def window_options(handler: type) -> dict[str, Any]:
    """Since 0.21 a window gets the frame before it as well, unless told not to: one more than a model may know."""
    known = inspect.signature(handler.__init__).parameters
    return {"causal_window_fix": False} if "causal_window_fix" in known else {}


def t5_clip_type() -> str:
    """The type of CLIPLoader that gives T5 as CogVideoX reads it: since 0.21 there is one of its name."""
    return "cogvideox" if hasattr(comfy.sd.CLIPType, "COGVIDEOX") else "pixart"


def quantised_operators(compute: torch.dtype, device: torch.device) -> tuple[frozenset[str], Any]:
    """Names of the quantised formats that ComfyUI knows, and its layers for them; before 0.19 none that a file names.

    A format that this card cannot multiply in is dequantised where it is used.
    """
    known = inspect.signature(getattr(comfy.ops, "mixed_precision_ops", id)).parameters
    if "quant_config" not in known:
        return frozenset(), None
    settings = comfy.supported_models_base.BASE({})
    settings.quant_config = {"mixed_ops": True}
    operators = comfy.ops.pick_operations(None, compute, load_device=device, model_config=settings)
    return frozenset(comfy.ops.QUANT_ALGOS), operators


def named_formats(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights with the names of their quantised formats beside them, where `scaled_fp8` or the header told them."""
    convert = getattr(comfy.utils, "convert_old_quants", None)
    marker = next((name for name in tensors if name.endswith("scaled_fp8")), None)
    if convert is None or not (marker or "_quantization_metadata" in metadata):
        return tensors
    return convert(tensors, (marker or "").removesuffix("scaled_fp8"), metadata)[0]


def patched_when_used(layer: nn.Module) -> bool:
    """Whether ComfyUI changes a layer's weight when it is read: dynamic VRAM keeps a LoRA in a place of its own."""
    return bool(layer.weight_function) or getattr(layer, "weight_lowvram_function", None) is not None


def cast_weights(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer for good, on the device and in the dtype of `like`.

    Dynamic VRAM (since 0.16) lends them from memory that it may give to others afterwards: these are copied.
    """
    if not hasattr(layer, "_v"):
        return comfy.ops.cast_bias_weight(layer, like)
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    copies = weight.clone(), bias.clone()
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return copies
