"""Triton kernels behind `kernels`; only imported where Triton and a GPU are."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _modulate(
    x, out, weight, bias, scale, shift, eps, length, dim,
    x_batch, x_row, out_batch, out_row, mod_batch,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    kind = x.dtype.element_ty
    value = tl.load(x + batch.to(tl.int64) * x_batch + row.to(tl.int64) * x_row + column, mask=inside, other=0.0)
    value = value.to(tl.float32)
    mean = tl.sum(value, 0) / dim
    centred = tl.where(inside, value - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 0) / dim + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    normed = (centred * inverse * w + b).to(kind).to(tl.float32)
    s = tl.load(scale + batch * mod_batch + column, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(shift + batch * mod_batch + column, mask=inside, other=0.0).to(tl.float32)
    scaled = (normed * (1.0 + s).to(kind).to(tl.float32)).to(kind).to(tl.float32)
    place = out + batch.to(tl.int64) * out_batch + row.to(tl.int64) * out_row + column
    tl.store(place, (scaled + t).to(kind), mask=inside)


def modulate(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor) -> None:
    batch, length, dim = x.shape
    block = triton.next_power_of_2(dim)
    _modulate[(length, batch)](
        x, out, weight, bias, scale, shift, eps, length, dim,
        x.stride(0), x.stride(1), out.stride(0), out.stride(1), scale.stride(0),
        BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip


@triton.jit
def _gated_add(
    x, y, gate, out, length, dim, x_batch, x_row, y_batch, y_row, gate_batch,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    kind = x.dtype.element_ty
    a = tl.load(x + batch.to(tl.int64) * x_batch + row.to(tl.int64) * x_row + column, mask=inside)
    b = tl.load(y + batch.to(tl.int64) * y_batch + row.to(tl.int64) * y_row + column, mask=inside)
    g = tl.load(gate + batch * gate_batch + column, mask=inside)
    product = (g.to(tl.float32) * b.to(tl.float32)).to(kind).to(tl.float32)
    place = out + (batch.to(tl.int64) * length + row) * dim + column
    tl.store(place, (a.to(tl.float32) + product).to(kind), mask=inside)


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    batch, length, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(dim)
    _gated_add[(length, batch)](
        x, y, gate, out, length, dim, x.stride(0), x.stride(1), y.stride(0), y.stride(1), gate.stride(0),
        BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out


@triton.jit
def _norm_rotate(
    x, weight, bias, cos, sin, eps, rows, length, heads, words,
    DIM: tl.constexpr, ROWS: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, DIM)
    inside = (row < rows)[:, None]
    kind = x.dtype.element_ty
    place = x + row.to(tl.int64)[:, None] * DIM + column[None]
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    value -= (tl.sum(value, 1) / DIM)[:, None]
    value *= tl.rsqrt(tl.sum(value * value, 1) / DIM + eps)[:, None]
    value = value * tl.load(weight + column).to(tl.float32)[None] + tl.load(bias + column).to(tl.float32)[None]
    value = value.to(kind).to(tl.float32)
    if ROTATE:
        token = (row // heads) % length - words
        turns = inside & (token >= 0)[:, None]
        angle = token[:, None] * DIM + column[None]
        c, s = tl.load(cos + angle, mask=turns, other=1.0), tl.load(sin + angle, mask=turns, other=0.0)
        even, odd = tl.split(tl.reshape(value, (ROWS, DIM // 2, 2)))
        value = value * c + tl.reshape(tl.join(-odd, even), (ROWS, DIM)) * s
    tl.store(place, value.to(kind), mask=inside)


def norm_rotate(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, rotary: tuple[Tensor, Tensor] | None, words: int
) -> Tensor:
    batch, length, heads, dim = x.shape
    x = x.contiguous()
    rows = batch * length * heads
    cos, sin = rotary if rotary is not None else (x, x)
    rows_at_once = 32
    _norm_rotate[(triton.cdiv(rows, rows_at_once),)](
        x, weight, bias, cos, sin, eps, rows, length, heads, words,
        DIM=dim, ROWS=rows_at_once, ROTATE=rotary is not None, num_warps=4,
    )  # fmt: skip
    return x
