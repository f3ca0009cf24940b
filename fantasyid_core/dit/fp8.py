"""Matmuls with 8-bit operands (float8 e4m3): twice as fast as bf16 where the hardware has them.

Activations and weights are quantised row by row (`kernels.quantise_rows`). Weights that are stored in this format
already are multiplied as they are.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import FLOAT8, RowwiseFp8, quantise_rows

log = logging.getLogger(__name__)


def quantise_weight(weight: Tensor) -> RowwiseFp8:
    """Quantise a weight (N, K); one that is stored in the format stays as it is."""
    if weight.dtype == FLOAT8:
        return RowwiseFp8(weight, weight.new_ones(len(weight), 1, dtype=torch.float32))
    return quantise_rows(weight)


def fp8_matmul(x: RowwiseFp8, weight: RowwiseFp8, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x (…, K) · weight (N, K)ᵀ + bias (N,) → (…, N) in `dtype`."""
    if not x.values.is_cuda or any(size % 16 for size in weight.values.shape):
        return fp8_matmul_eager(x, weight, bias, dtype)
    multiply = rowwise_scaled_mm if _has_rowwise_scales(x.values.device) else tensorwise_scaled_mm
    rows = RowwiseFp8(x.values.flatten(0, -2), x.scales.flatten(0, -2))
    out = multiply(rows, weight, None if bias is None else bias.to(torch.bfloat16))
    return out.unflatten(0, x.values.shape[:-1]).to(dtype)


def rowwise_scaled_mm(x: RowwiseFp8, weight: RowwiseFp8, bias: Tensor | None) -> Tensor:
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


def tensorwise_scaled_mm(x: RowwiseFp8, weight: RowwiseFp8, bias: Tensor | None) -> Tensor:
    """The same where one scale a tensor is all that there is: scaled afterwards, rounded once more."""
    one = torch.ones((), device=x.values.device)
    out = torch._scaled_mm(
        x.values, weight.values.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    out = out * x.scales * weight.scales.t()
    return (out if bias is None else out + bias).to(torch.bfloat16)


def fp8_matmul_eager(x: RowwiseFp8, weight: RowwiseFp8, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The eager reference of `fp8_matmul`: dequantised, then multiplied."""
    return F.linear(dequantise(x, dtype), dequantise(weight, dtype), None if bias is None else bias.to(dtype))


def dequantise(x: RowwiseFp8, dtype: torch.dtype) -> Tensor:
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
def _has_rowwise_scales(device: torch.device) -> bool:
    return _try_rowwise_scales(device)


@functools.cache
def _try_rowwise_scales(device: torch.device) -> bool:
    """By trying: it depends on the card, CUDA and torch, and all refuse with a RuntimeError of their own."""
    few = RowwiseFp8(torch.zeros(16, 16, device=device).to(FLOAT8), torch.ones(16, 1, device=device))
    try:
        rowwise_scaled_mm(few, few, None)
    except RuntimeError as error:
        log.info("No fp8 matmul with row-wise scales here (%s); with one scale a tensor instead.", error)
        return False
    return True
