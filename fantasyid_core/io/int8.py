"""Matrices of a weights file as 8-bit integers with one scale a row: half the size of fp16, and read back as fp16.

A tensor NAME (R, …) is stored as NAME int8 and NAME.row_scale float32 (R,); their product is what was packed, to half a
step of 1/127 of the row's largest value. This is how files are stored, not how anything computes (that is `fp8`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import WeightsError

SCALE = ".row_scale"
SMALLEST = 4096  # elements: what has fewer is not worth a second tensor
STEPS = 127


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name → tensor, the floating ones of two or more dimensions and at least 4096 elements as int8 with their scales.

    All others are the same tensors, those that are packed already among them: packing what `unpack` gave makes the same
    bits again.

    Raises:
        WeightsError: a tensor to be packed has values that fp16 cannot hold.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() >= SMALLEST:
            packed[name], packed[name + SCALE] = _quantize(name, tensor)
        else:
            packed[name] = tensor
    return packed


def unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name → tensor as before `pack`, what was packed in fp16; without anything packed, `tensors` itself, unread.

    What ComfyUI quantised (`comfy_quant`) stays so.

    Raises:
        WeightsError: an 8-bit tensor without its scales, scales without their tensor, or not one for each row.
    """
    quantised = {
        name for name, tensor in tensors.items() if tensor.dtype == torch.int8 and not _is_comfy(name, tensors)
    }
    scales = {name for name in tensors if name.endswith(SCALE)}
    if not quantised and not scales:
        return tensors
    for name in sorted(quantised | {scale.removesuffix(SCALE) for scale in scales}):
        _check(name, tensors)
    return {
        name: _dequantize(tensor, tensors[name + SCALE]) if name in quantised else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }


def _quantize(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    # Rounded to fp16 first, as it is read back: the largest value of a row then survives exactly, so its scale does.
    rows = tensor.detach().to(torch.float16).float()
    if not rows.isfinite().all():
        raise WeightsError(
            f"The tensor {name} cannot be stored in 8 bits: it holds values that are not finite, or beyond what fp16 "
            f"holds ({torch.finfo(torch.float16).max:.0f}). Pack weights from before the training went wrong."
        )
    # Not in fp16, which would round the scales of rows below 0.008 coarsely and of those below 4e-6 to zero.
    scale = rows.flatten(1).abs().amax(1) / STEPS
    values = rows / _per_row(scale.clamp(min=torch.finfo(scale.dtype).tiny), rows)  # rows of zeros have the scale 0
    return values.round().to(torch.int8), scale


def _dequantize(tensor: Tensor, scale: Tensor) -> Tensor:
    return (tensor.float() * _per_row(scale.float(), tensor)).to(torch.float16)


def _per_row(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.view(-1, *(1,) * (tensor.ndim - 1))


def _is_comfy(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a weight is in one of ComfyUI's own formats, which have scales under other names."""
    return f"{name.rpartition('.')[0]}.comfy_quant" in tensors


def _check(name: str, tensors: Mapping[str, Tensor]) -> None:
    tensor, scale = tensors.get(name), tensors.get(name + SCALE)
    if tensor is None or tensor.dtype != torch.int8:
        there = "is missing" if tensor is None else f"holds {tensor.dtype}, not int8"
        problem = f"{name + SCALE} holds the scales of an 8-bit tensor, but {name} {there}"
    elif scale is None:
        problem = f"the 8-bit tensor {name} has no scales: expected {name + SCALE} beside it"
    elif tensor.ndim == 0 or scale.shape != tensor.shape[:1] or not scale.is_floating_point():
        problem = (
            f"{name + SCALE} does not fit the 8-bit tensor {name} {tuple(tensor.shape)}: expected a floating-point "
            f"number for each row, {tuple(tensor.shape[:1])}, found {scale.dtype} {tuple(scale.shape)}"
        )
    else:
        return
    raise WeightsError(
        f"These weights are incomplete or in another program's 8-bit format: {problem}. "
        "Copy or download the model again, or take a version of it in fp16."
    )
