"""The small operations around a DiT block's products, fused: each a Triton kernel with a plain PyTorch twin.

On an H100 they are a third of a denoising step, all of it memory traffic; a fused kernel reads and writes every value
once. The kernels round where the twins do. The twin runs where Triton or a GPU is missing and where gradients are
wanted. Under torch.compile the kernels are operators that the compiler leaves as they are.
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


class Rows8(NamedTuple):
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
    """Of an adaptive layer norm: factors less one and summands for visual and text tokens, each (B, D)."""

    scale: Tensor
    shift: Tensor
    words_scale: Tensor
    words_shift: Tensor


def own_weights(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer norm, on the device and in the dtype of `like`."""
    return norm.weight.to(like), norm.bias.to(like)


def layer_norm(x: Tensor, norm: Norm) -> Tensor:
    """Layer norm of (B, L, D)."""
    return _run("layer_norm", layer_norm_plain, x, *norm)


def layer_norm_plain(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The twin of `layer_norm`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def modulate(visual: Tensor, words: Tensor, norm: Norm, modulation: Modulation) -> Tensor:
    """Adaptive layer norm, norm(x) · (1 + scale) + shift, of visual tokens (B, L, D) and text tokens (B, N, D).

    Returns:
        (B, N + L, D), text tokens first.
    """
    return _run("modulate", modulate_plain, visual, words, *norm, *modulation)


def modulate_plain(
    visual: Tensor, words: Tensor, weight: Tensor, bias: Tensor, eps: float,
    scale: Tensor, shift: Tensor, words_scale: Tensor, words_shift: Tensor,
) -> Tensor:  # fmt: skip
    """The twin of `modulate`."""
    parts = [
        layer_norm_plain(x, weight, bias, eps) * (1 + s)[:, None] + t[:, None]
        for x, s, t in ((words, words_scale, words_shift), (visual, scale, shift))
    ]
    return torch.cat(parts, 1).to(visual.dtype)  # autocast gives float32


def modulate8(visual: Tensor, words: Tensor, norm: Norm, modulation: Modulation) -> Rows8:
    """`modulate`, the result in 8 bits."""
    return Rows8(*_run("modulate8", modulate8_plain, visual, words, *norm, *modulation))


def modulate8_plain(
    visual: Tensor, words: Tensor, weight: Tensor, bias: Tensor, eps: float,
    scale: Tensor, shift: Tensor, words_scale: Tensor, words_shift: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The twin of `modulate8`."""
    return rows8_plain(modulate_plain(visual, words, weight, bias, eps, scale, shift, words_scale, words_shift))


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate · y for x and y (B, L, D), slices along L allowed, and gate (B, D)."""
    return _run("gated_add", gated_add_plain, x, y, gate)


def gated_add_plain(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """The twin of `gated_add`."""
    return x + gate[:, None] * y


def norm_rotate(x: Tensor, norm: Norm, rotary: Rotary | None, words: int) -> Tensor:
    """Layer norm of every head, then rotary positions on the visual tokens.

    Args:
        x: (B, L, H, D) queries or keys, text tokens first.
        rotary: cosines and sines (L − words, D) float32, neighbouring channels in pairs; None: no rotation.
        words: number of text tokens, which are not rotated.
    """
    return _run("norm_rotate", norm_rotate_plain, x, *norm, *(rotary or (None, None)), words)


def norm_rotate_plain(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, cos: Tensor | None, sin: Tensor | None, words: int
) -> Tensor:
    """The twin of `norm_rotate`."""
    x = F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(x.dtype)  # autocast gives float32
    if cos is None or sin is None:
        return x
    cos, sin = (r[:, None].to(x.device) for r in (cos, sin))
    visual = x[:, words:].float()
    even, odd = visual.unflatten(-1, (-1, 2)).unbind(-1)
    turned = visual * cos + torch.stack([-odd, even], -1).flatten(-2) * sin
    return torch.cat([x[:, :words], turned.to(x.dtype)], 1)


def rows8(x: Tensor) -> Rows8:
    """(…, K) in 8 bits: every row's largest value comes to lie between 128 and 256, of the format's 448.

    A row's scale is a power of two, so that scaling rounds nothing: what is lost is the mantissa, 3 bits instead of 7.
    """
    return Rows8(*_run("rows8", rows8_plain, x))


def rows8_plain(x: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of `rows8`."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    power_of_two = (largest.view(torch.int32) & 0x7F800000).view(torch.float32)  # the exponent alone
    scales = power_of_two * 2.0**-7
    return (x / scales).to(FLOAT8), scales


def gelu8(x: Tensor) -> Rows8:
    """GELU in its tanh form of (…, K), in 8 bits."""
    return Rows8(*_run("gelu8", gelu8_plain, x))


def gelu8_plain(x: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of `gelu8`."""
    return rows8_plain(F.gelu(x, approximate="tanh"))


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU in its tanh form of x (…, K) · weight (N, K)ᵀ + bias (N,), without writing the product out first."""
    return _run("linear_gelu", linear_gelu_plain, x, weight, bias)


def linear_gelu_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The twin of `linear_gelu`; it rounds once more."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None or torch.is_autocast_enabled():  # autocast does not know the fused operation
        return linear_gelu_plain(x, weight, bias)
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)  # tanh on CUDA, not on a CPU
    return rows.unflatten(0, x.shape[:-1])


TWINS: dict[str, Callable] = {
    "layer_norm": layer_norm_plain,
    "modulate": modulate_plain,
    "modulate8": modulate8_plain,
    "gated_add": gated_add_plain,
    "norm_rotate": norm_rotate_plain,
    "rows8": rows8_plain,
    "gelu8": gelu8_plain,
    "linear_gelu": linear_gelu_plain,
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
    fused = {name: _fused(name) for name in TWINS if hasattr(torch.library, "custom_op") and _fused(name)}
    for name, function in fused.items():
        torch.library.custom_op(f"fantasyid::{name}", function, mutates_args=()).register_fake(TWINS[name])
    return frozenset(fused)
