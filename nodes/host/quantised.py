"""Transformers in ComfyUI's quantised formats: scales lie beside a layer's weight, and `comfy_quant` names its format.

ComfyUI's own layers read them and compute with them, where this machine's kernels can in the format itself.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...fantasyid_core.errors import WeightsError, cause
from ...fantasyid_core.fusion.checkpoint import QUANTISED
from ...fantasyid_core.io.weights import check_fit
from ...fantasyid_core.operations import Operations
from .compat import quantised_operators


def operators_for(tensors: Mapping[str, Tensor], compute: torch.dtype, device: torch.device) -> Operations:
    """ComfyUI's layers for these weights, of which some are quantised, computing in `compute` on `device`.

    Raises:
        WeightsError: this ComfyUI does not know one of their formats.
    """
    known, operators = quantised_operators(compute, device)
    formats = {_format(name, tensor) for name, tensor in tensors.items() if name.endswith(QUANTISED)}
    unknown = sorted(formats.difference(known))
    if unknown or operators is None:
        knows = f"this one knows {', '.join(sorted(known))}" if known else "this one knows none of them"
        raise WeightsError(
            f"This transformer is stored in ComfyUI's quantised format {', '.join(unknown)}, which needs a "
            f"newer ComfyUI: {knows}. Update ComfyUI (0.19 reads fp8 with scales, mxfp8 and nvfp4, 0.33 int8 as well) "
            "or take the file in bf16 or fp16; weight_dtype fp8_e4m3fn of Load Model saves as much memory."
        )
    return operators


def load_quantised(module: nn.Module, plain: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give `module`, built from `operators_for`, these weights, some of them quantised and not copied, gradients off.

    Args:
        plain: the same network of PyTorch's layers (may be on the meta device): what names and shapes are wanted.

    Raises:
        WeightsError: names are missing or left over, or a shape differs.
    """
    wanted = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    layers = {name for name, layer in plain.named_modules() if isinstance(layer, nn.Linear)}
    quantised = {name.removesuffix(QUANTISED) for name in tensors if name.endswith(QUANTISED)} & layers
    shapes = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if layer in quantised and last == "weight":
            shapes[name] = wanted[name]  # packed, it has a shape of its own
        elif layer not in quantised or name in wanted:  # whatever else belongs to a format is ComfyUI's to check
            shapes[name] = tensor.shape
    check_fit(wanted, shapes, what=what)
    try:
        module.load_state_dict(tensors, strict=False, assign=True)
        module.eval().requires_grad_(False)
    except (AttributeError, KeyError, ValueError, RuntimeError) as error:  # AttributeError: no scales
        raise WeightsError(
            f"The quantised weights of this {what} are not complete ({cause(error)}). Copy or download the file again."
        ) from error


def _format(name: str, tensor: Tensor) -> str:
    try:
        return str(json.loads(tensor.numpy().tobytes())["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"The tensor {name} does not name a quantised format of ComfyUI. Copy or download the file again."
        ) from error
