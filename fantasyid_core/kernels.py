"""The small operations around a DiT block's products, fused: each a Triton kernel with a plain PyTorch twin.

On an H100 they are a third of a denoising step, all of it memory traffic; a fused kernel reads and writes every value
once. The kernels round where the twins do. The twin runs where Triton or a GPU is missing, where gradients are wanted,
and under torch.compile, which fuses it itself.
"""

import functools
import logging
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)
Rotary = tuple[Tensor, Tensor]


def modulate(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor) -> None:
    """Adaptive layer norm: out = norm(x) · (1 + scale) + shift.

    Args:
        x: (B, L, D); may be a slice along L.
        weight, bias: (D,) of the layer norm.
        scale, shift: (B, D).
        out: (B, L, D), may be a slice along L of a larger tensor.
    """
    if kernels := _kernels(x, weight, bias, scale, shift):
        kernels.modulate(x, weight, bias, scale, shift, eps, out)
    else:
        out.copy_(modulate_plain(x, weight, bias, scale, shift, eps))


def modulate_plain(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The twin of `modulate`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps) * (1 + scale)[:, None] + shift[:, None]


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate · y for x and y (B, L, D), slices along L allowed, and gate (B, D)."""
    if kernels := _kernels(x, y, gate):
        return kernels.gated_add(x, y, gate)
    return gated_add_plain(x, y, gate)


def gated_add_plain(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """The twin of `gated_add`."""
    return x + gate[:, None] * y


def norm_rotate(x: Tensor, weight: Tensor, bias: Tensor, eps: float, rotary: Rotary | None, words: int) -> Tensor:
    """Layer norm of every head, then rotary positions on the visual tokens. Overwrites x where it can.

    Args:
        x: (B, L, H, D) contiguous queries or keys, text tokens first.
        weight, bias: (D,).
        rotary: cosines and sines (L − words, D) float32, neighbouring channels in pairs; None: no rotation.
        words: number of text tokens, which are not rotated.
    """
    if kernels := _kernels(x, weight, bias):
        return kernels.norm_rotate(x, weight, bias, eps, rotary, words)
    return norm_rotate_plain(x, weight, bias, eps, rotary, words)


def norm_rotate_plain(x: Tensor, weight: Tensor, bias: Tensor, eps: float, rotary: Rotary | None, words: int) -> Tensor:
    """The twin of `norm_rotate`."""
    x = F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(x.dtype)  # autocast gives float32
    if rotary is None:
        return x
    cos, sin = (r[:, None].to(x.device) for r in rotary)
    visual = x[:, words:].float()
    even, odd = visual.unflatten(-1, (-1, 2)).unbind(-1)
    turned = visual * cos + torch.stack([-odd, even], -1).flatten(-2) * sin
    return torch.cat([x[:, :words], turned.to(x.dtype)], 1)


def _kernels(*operands: Tensor) -> ModuleType | None:
    if not operands[0].is_cuda or torch.compiler.is_compiling():
        return None
    if torch.is_grad_enabled() and any(operand.requires_grad for operand in operands):
        return None  # a gradient may be wanted of any of them, not of the first alone
    return _triton_kernels()


@functools.cache
def _triton_kernels() -> ModuleType | None:
    try:
        from . import _triton_kernels as module
    except Exception as error:  # no Triton on Windows by default; a broken one must not stop a video either
        log.info("Triton is not usable (%s); the plain operations run, which is slower.", error)
        return None
    return module
