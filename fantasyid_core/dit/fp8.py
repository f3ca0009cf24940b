"""Matrix products with 8-bit operands (float8 e4m3): twice as fast as bf16 where the hardware has them.

Activations and weights are quantised row by row (`kernels.rows8`). Weights that are stored in this format already are
multiplied as they are.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import FLOAT8, Rows8, rows8

log = logging.getLogger(__name__)


def weight8(weight: Tensor) -> Rows8:
    """Quantise a weight (N, K); one that is stored in the format stays as it is."""
    if weight.dtype == FLOAT8:
        return Rows8(weight, weight.new_ones(len(weight), 1, dtype=torch.float32))
    return rows8(weight)


def product(x: Rows8, weight: Rows8, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x (…, K) · weight (N, K)ᵀ + bias (N,) → (…, N) in `dtype`."""
    if not x.values.is_cuda or any(size % 16 for size in weight.values.shape):
        return product_plain(x, weight, bias, dtype)
    multiply = by_row if _has_scales_by_row(x.values.device) else by_tensor
    rows = Rows8(x.values.flatten(0, -2), x.scales.flatten(0, -2))
    out = multiply(rows, weight, None if bias is None else bias.to(torch.bfloat16))
    return out.unflatten(0, x.values.shape[:-1]).to(dtype)


def by_row(x: Rows8, weight: Rows8, bias: Tensor | None) -> Tensor:
    """x (M, K) · weight (N, K)ᵀ + bias (N,) → (M, N) bfloat16, the only type that the hardware scales by row to."""
    return torch._scaled_mm(
        x.values,
        weight.values.t(),
        scale_a=x.scales,
        scale_b=weight.scales.t(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def by_tensor(x: Rows8, weight: Rows8, bias: Tensor | None) -> Tensor:
    """The same where one scale a tensor is all that there is: scaled afterwards, rounded once more."""
    one = torch.ones((), device=x.values.device)
    out = torch._scaled_mm(
        x.values, weight.values.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    out = out * x.scales * weight.scales.t()
    return (out if bias is None else out + bias).to(torch.bfloat16)


def product_plain(x: Rows8, weight: Rows8, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The twin of `product`: dequantised, then multiplied."""
    return F.linear(dequantised(x, dtype), dequantised(weight, dtype), None if bias is None else bias.to(dtype))


def dequantised(x: Rows8, dtype: torch.dtype) -> Tensor:
    """The values that a quantised matrix stands for."""
    return (x.values.float() * x.scales).to(dtype)


@functools.cache
def missing(device: torch.device) -> str | None:
    """Why a device cannot multiply in 8 bits, or None where it can."""
    if device.type != "cuda" or torch.version.hip:
        return f"this machine computes on '{device.type}'"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 9):
        return f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}"
    return None


@torch.compiler.assume_constant_result
def _has_scales_by_row(device: torch.device) -> bool:
    return _tried_scales_by_row(device)


@functools.cache
def _tried_scales_by_row(device: torch.device) -> bool:
    """By trying: it depends on the card, CUDA and torch, and all refuse with a RuntimeError of their own."""
    few = Rows8(torch.zeros(16, 16, device=device).to(FLOAT8), torch.ones(16, 1, device=device))
    try:
        by_row(few, few, None)
    except RuntimeError as error:
        log.info("No 8-bit products with scales by row here (%s); with one scale a tensor instead.", error)
        return False
    return True
