"""The small operations around a DiT block's matmuls, fused: each a Triton kernel with an eager reference in PyTorch.

On an H100 they are a third of a denoising step, all of it memory traffic; a fused kernel reads and writes every value
once. The kernels round where the references do. The reference runs where Triton or a GPU is missing and where gradients
are wanted. Under torch.compile the kernels are operators that the compiler leaves as they are.
"""

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)
Rotary = tuple[Tensor, Tensor]
WeightsOf = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
FLOAT8 = torch.float8_e4m3fn
SMALLEST = 2.0**-100  # of a row's largest value; far below it a scale would leave float32


class RowwiseFp8(NamedTuple):
    """A matrix in 8 bits; value = values · scales.

    Attributes:
        values: (…, K) float8_e4m3fn.
        scales: (…, 1) float32, powers of two.
    """

    values: Tensor
    scales: Tensor


class Norm(NamedTuple):
    """A layer norm's weight and bias, each (D,), and epsilon."""

    weight: Tensor
    bias: Tensor
    eps: float


class Modulation(NamedTuple):
    """Of an adaptive layer norm: factors less one and summands for video and text tokens, each (B, D)."""

    scale: Tensor
    shift: Tensor
    text_scale: Tensor
    text_shift: Tensor


def own_weights(norm: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer norm, on the device and in the dtype of `like`."""
    return norm.weight.to(like), norm.bias.to(like)


def layer_norm(x: Tensor, norm: Norm) -> Tensor:
    """Layer norm of (B, L, D)."""
    return _run("layer_norm", layer_norm_eager, x, *norm)


def layer_norm_eager(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The eager reference of `layer_norm`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def modulate(hidden_states: Tensor, encoder_hidden_states: Tensor, norm: Norm, modulation: Modulation) -> Tensor:
    """Adaptive layer norm, norm(x) · (1 + scale) + shift, of video tokens (B, L, D) and text tokens (B, N, D).

    Returns:
        (B, N + L, D), text tokens first.
    """
    return _run("modulate", modulate_eager, hidden_states, encoder_hidden_states, *norm, *modulation)


def modulate_eager(
    hidden_states: Tensor, encoder_hidden_states: Tensor, weight: Tensor, bias: Tensor, eps: float,
    scale: Tensor, shift: Tensor, text_scale: Tensor, text_shift: Tensor,
) -> Tensor:  # fmt: skip
    """The eager reference of `modulate`."""
    parts = [
        layer_norm_eager(x, weight, bias, eps) * (1 + s)[:, None] + t[:, None]
        for x, s, t in ((encoder_hidden_states, text_scale, text_shift), (hidden_states, scale, shift))
    ]
    return torch.cat(parts, 1).to(hidden_states.dtype)  # autocast gives float32


def modulate_fp8(
    hidden_states: Tensor, encoder_hidden_states: Tensor, norm: Norm, modulation: Modulation
) -> RowwiseFp8:
    """`modulate`, the result in 8 bits."""
    return RowwiseFp8(
        *_run("modulate_fp8", modulate_fp8_eager, hidden_states, encoder_hidden_states, *norm, *modulation)
    )


def modulate_fp8_eager(
    hidden_states: Tensor, encoder_hidden_states: Tensor, weight: Tensor, bias: Tensor, eps: float,
    scale: Tensor, shift: Tensor, text_scale: Tensor, text_shift: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The eager reference of `modulate_fp8`."""
    return quantise_rows_eager(
        modulate_eager(hidden_states, encoder_hidden_states, weight, bias, eps, scale, shift, text_scale, text_shift)
    )


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate · y for x and y (B, L, D), slices along L allowed, and gate (B, D)."""
    return _run("gated_add", gated_add_eager, x, y, gate)


def gated_add_eager(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """The eager reference of `gated_add`."""
    return x + gate[:, None] * y


def qk_norm_rope(x: Tensor, norm: Norm, image_rotary_emb: Rotary | None, text_tokens: int) -> Tensor:
    """Layer norm of every head, then rotary positions on the video tokens.

    Args:
        x: (B, L, H, D) queries or keys, text tokens first.
        image_rotary_emb: cosines and sines (L − text_tokens, D) float32, channels in pairs; None: no rotation.
        text_tokens: how many, which are not rotated.
    """
    return _run("qk_norm_rope", qk_norm_rope_eager, x, *norm, *(image_rotary_emb or (None, None)), text_tokens)


def qk_norm_rope_eager(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, cos: Tensor | None, sin: Tensor | None, text_tokens: int
) -> Tensor:
    """The eager reference of `qk_norm_rope`."""
    x = F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(x.dtype)  # autocast gives float32
    if cos is None or sin is None:
        return x
    cos, sin = (r[:, None].to(x.device) for r in (cos, sin))
    hidden_states = x[:, text_tokens:].float()
    even, odd = hidden_states.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = hidden_states * cos + torch.stack([-odd, even], -1).flatten(-2) * sin
    return torch.cat([x[:, :text_tokens], rotated.to(x.dtype)], 1)


def quantise_rows(x: Tensor) -> RowwiseFp8:
    """(…, K) in 8 bits: every row's largest value comes to lie between 128 and 256, of the format's 448.

    A row's scale is a power of two, so that scaling rounds nothing: what is lost is the mantissa, 3 bits instead of 7.
    """
    return RowwiseFp8(*_run("quantise_rows", quantise_rows_eager, x))


def quantise_rows_eager(x: Tensor) -> tuple[Tensor, Tensor]:
    """The eager reference of `quantise_rows`."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    power_of_two = (largest.view(torch.int32) & 0x7F800000).view(torch.float32)  # the exponent alone
    scales = power_of_two * 2.0**-7
    return (x / scales).to(FLOAT8), scales


def gelu_fp8(x: Tensor) -> RowwiseFp8:
    """GELU in its tanh form of (…, K), in 8 bits."""
    return RowwiseFp8(*_run("gelu_fp8", gelu_fp8_eager, x))


def gelu_fp8_eager(x: Tensor) -> tuple[Tensor, Tensor]:
    """The eager reference of `gelu_fp8`."""
    return quantise_rows_eager(F.gelu(x, approximate="tanh"))


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU in its tanh form of x (…, K) · weight (N, K)ᵀ + bias (N,), without writing the product out first."""
    return _run("linear_gelu", linear_gelu_eager, x, weight, bias)


def linear_gelu_eager(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The eager reference of `linear_gelu`; it rounds once more."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None or torch.is_autocast_enabled():  # autocast does not know the fused operation
        return linear_gelu_eager(x, weight, bias)
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)  # tanh on CUDA, not on a CPU
    return rows.unflatten(0, x.shape[:-1])


EAGER: dict[str, Callable] = {
    "layer_norm": layer_norm_eager,
    "modulate": modulate_eager,
    "modulate_fp8": modulate_fp8_eager,
    "gated_add": gated_add_eager,
    "qk_norm_rope": qk_norm_rope_eager,
    "quantise_rows": quantise_rows_eager,
    "gelu_fp8": gelu_fp8_eager,
    "linear_gelu": linear_gelu_eager,
}


def _run(name: str, plain: Callable, *arguments: Any) -> Any:
    if not _fuses(arguments):
        return plain(*arguments)
    if not torch.compiler.is_compiling():
        return (_fused(name) or plain)(*arguments)
    return getattr(torch.ops.fantasyid, name)(*arguments) if _is_operator(name) else plain(*arguments)


def _fuses(arguments: tuple) -> bool:
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    # a gradient may be wanted of any of them, not of the first alone
    return tensors[0].is_cuda and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


def _fused(name: str) -> Callable | None:
    return _linear_gelu if name == "linear_gelu" else getattr(_triton_kernels(), name, None)


@functools.cache
def _triton_kernels() -> ModuleType | None:
    try:
        from . import _triton_kernels as module
    except Exception as error:  # no Triton on Windows by default; a broken one must not stop a video either
        log.info("Triton is not usable (%s); the plain operations run, which is slower.", error)
        return None
    return module


@torch.compiler.assume_constant_result
def _is_operator(name: str) -> bool:
    """Whether a fused operation is there as an operator, which torch.compile leaves as it is (torch 2.4 and later)."""
    return name in _operators()


@functools.cache
def _operators() -> frozenset[str]:
    fused = {name: _fused(name) for name in EAGER if hasattr(torch.library, "custom_op") and _fused(name)}
    for name, function in fused.items():
        operator: Any = torch.library.custom_op(f"fantasyid::{name}", function, mutates_args=())
        operator.register_fake(EAGER[name])
    return frozenset(fused)
