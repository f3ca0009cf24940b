"""Matrix products with 8-bit operands (float8 e4m3): twice as fast as bf16 where the hardware has them.

Activations and weights are quantised row by row (`kernels.rows8`). Weights that are stored in this format already are
multiplied as they are.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import FLOAT8, Rows8, rows8


def weight8(weight: Tensor) -> Rows8:
    """Quantise a weight (N, K); one that is stored in the format stays as it is."""
    if weight.dtype == FLOAT8:
        return Rows8(weight, weight.new_ones(len(weight), 1, dtype=torch.float32))
    return rows8(weight)


def product(x: Rows8, weight: Rows8, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x (…, K) · weight (N, K)ᵀ + bias (N,) → (…, N) in `dtype`."""
    if not x.values.is_cuda or any(size % 16 for size in weight.values.shape):
        return product_plain(x, weight, bias, dtype)
    out = torch._scaled_mm(
        x.values.flatten(0, -2),
        weight.values.t(),
        scale_a=x.scales.flatten(0, -2),
        scale_b=weight.scales.t(),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,  # the only one with scales by row
        use_fast_accum=True,
    )
    return out.unflatten(0, x.values.shape[:-1]).to(dtype)


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
