"""Triton kernels behind `kernels` and `fp8`; only imported where Triton and a GPU are."""

# pyright: reportIndexIssue=false
# Triton's kernels are launched as kernel[grid](…), which its decorator does not say

import torch
import triton
import triton.language as tl
from torch import Tensor


def _rows(x: Tensor) -> Tensor:
    """The kernels take strides along batch and length as they come; a row lies in one piece."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _block(dim: int) -> dict[str, int]:
    """One row of `dim` values by one program."""
    block = triton.next_power_of_2(dim)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


@triton.jit
def _store(value, place, scales, inside, EIGHT: tl.constexpr):
    """A row as it is, or in 8 bits with its scale, a power of two (`fp8.quantise_rows`)."""
    if EIGHT:
        largest = tl.maximum(tl.max(tl.where(inside, tl.abs(value), 0.0), 0), 7.888609052210118e-31)  # 2⁻¹⁰⁰
        exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
        tl.store(scales, exponent.to(tl.float32, bitcast=True) * 0.0078125)
        value *= (0x7F000000 - exponent).to(tl.float32, bitcast=True) * 128.0
    tl.store(place, value.to(place.dtype.element_ty), mask=inside)


@triton.jit
def _modulate(
    x, out, scales, weight, bias, scale, shift, eps, dim,
    x_batch, x_row, out_batch, out_row, scales_batch, mod_batch,
    MODULATE: tl.constexpr, EIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    kind = x.dtype.element_ty
    value = tl.load(x + batch * x_batch + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / dim
    centred = tl.where(inside, value - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 0) / dim + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    value = (centred * inverse * w + b).to(kind).to(tl.float32)
    if MODULATE:
        s = tl.load(scale + batch * mod_batch + column, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(shift + batch * mod_batch + column, mask=inside, other=0.0).to(tl.float32)
        scaled = (value * (1.0 + s).to(kind).to(tl.float32)).to(kind).to(tl.float32)
        value = (scaled + t).to(kind).to(tl.float32)
    _store(value, out + batch * out_batch + row * out_row + column, scales + batch * scales_batch + row, inside, EIGHT)


def _modulated(
    x: Tensor, norm: tuple, factors: tuple[Tensor, Tensor] | None, out: Tensor, scales: Tensor | None
) -> None:
    weight, bias, eps = norm
    x = _rows(x)
    scale, shift = (weight, bias) if factors is None else map(_rows, factors)
    batch, length, dim = x.shape
    _modulate[(length, batch)](
        x, out, out if scales is None else scales, weight, bias, scale, shift, eps, dim,
        x.stride(0), x.stride(1), out.stride(0), out.stride(1), 0 if scales is None else scales.stride(0),
        scale.stride(0), MODULATE=factors is not None, EIGHT=scales is not None, **_block(dim),
    )  # fmt: skip


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _modulated(x, (weight, bias, eps), None, out, None)
    return out


def _joint(hidden_states, encoder_hidden_states, norm, modulation, out: Tensor, scales: Tensor | None) -> None:
    scale, shift, text_scale, text_shift = modulation
    n = encoder_hidden_states.shape[1]
    for x, factors, part in (
        (encoder_hidden_states, (text_scale, text_shift), slice(n)),
        (hidden_states, (scale, shift), slice(n, None)),
    ):
        _modulated(x, norm, factors, out[:, part], None if scales is None else scales[:, part])


def modulate(
    hidden_states: Tensor, encoder_hidden_states: Tensor, weight: Tensor, bias: Tensor, eps: float,
    scale: Tensor, shift: Tensor, text_scale: Tensor, text_shift: Tensor,
) -> Tensor:  # fmt: skip
    batch, length, dim = hidden_states.shape
    out = hidden_states.new_empty(batch, encoder_hidden_states.shape[1] + length, dim)
    _joint(hidden_states, encoder_hidden_states, (weight, bias, eps), (scale, shift, text_scale, text_shift), out, None)
    return out


def modulate_fp8(
    hidden_states: Tensor, encoder_hidden_states: Tensor, weight: Tensor, bias: Tensor, eps: float,
    scale: Tensor, shift: Tensor, text_scale: Tensor, text_shift: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, length, dim = hidden_states.shape
    out = hidden_states.new_empty(batch, encoder_hidden_states.shape[1] + length, dim, dtype=torch.float8_e4m3fn)
    scales = hidden_states.new_empty(*out.shape[:2], 1, dtype=torch.float32)
    _joint(
        hidden_states, encoder_hidden_states, (weight, bias, eps), (scale, shift, text_scale, text_shift), out, scales
    )
    return out, scales


@triton.jit
def _quantise_rows(x, out, scales, dim, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    value = tl.load(x + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        value *= tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
        value = value.to(x.dtype.element_ty).to(tl.float32)
    _store(value, out + row * dim + column, scales + row, inside, True)


def _quantise(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    _quantise_rows[(scales.numel(),)](x, out, scales, x.shape[-1], GELU=gelu, **_block(x.shape[-1]))
    return out, scales


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return _quantise(x, gelu=False)


def gelu_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    return _quantise(x, gelu=True)


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
    x, y, gate = _rows(x), _rows(y), _rows(gate)
    batch, length, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _gated_add[(length, batch)](
        x, y, gate, out, length, dim, x.stride(0), x.stride(1), y.stride(0), y.stride(1), gate.stride(0), **_block(dim)
    )
    return out


@triton.jit
def _qk_norm_rope(
    x, out, weight, bias, cos, sin, eps, rows, length, heads, text_tokens,
    DIM: tl.constexpr, ROWS: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, DIM)
    inside = (row < rows)[:, None]
    kind = x.dtype.element_ty
    place = row.to(tl.int64)[:, None] * DIM + column[None]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value -= (tl.sum(value, 1) / DIM)[:, None]
    value *= tl.rsqrt(tl.sum(value * value, 1) / DIM + eps)[:, None]
    value = value * tl.load(weight + column).to(tl.float32)[None] + tl.load(bias + column).to(tl.float32)[None]
    value = value.to(kind).to(tl.float32)
    if ROTATE:
        token = (row // heads) % length - text_tokens
        turns = inside & (token >= 0)[:, None]
        angle = token[:, None] * DIM + column[None]
        c, s = tl.load(cos + angle, mask=turns, other=1.0), tl.load(sin + angle, mask=turns, other=0.0)
        even, odd = tl.split(tl.reshape(value, (ROWS, DIM // 2, 2)))
        value = value * c + tl.reshape(tl.join(-odd, even), (ROWS, DIM)) * s
    tl.store(out + place, value.to(kind), mask=inside)


def qk_norm_rope(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, cos: Tensor | None, sin: Tensor | None, text_tokens: int
) -> Tensor:
    batch, length, heads, dim = x.shape
    x = x.contiguous()
    out = torch.empty_like(x)
    rows = batch * length * heads
    rows_at_once = 32
    _qk_norm_rope[(triton.cdiv(rows, rows_at_once),)](
        x, out, weight, bias, x if cos is None else cos, x if sin is None else sin, eps, rows, length, heads,
        text_tokens, DIM=dim, ROWS=rows_at_once, ROTATE=cos is not None, num_warps=4,
    )  # fmt: skip
    return out
