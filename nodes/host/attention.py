"""Which attention the DiT computes with: what the artist or a node chose, else PyTorch's fastest on this card."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from ...fantasyid_core.dit.attention import (
    Attend,
    FastestBackend,
    Shape,
    in_own_order,
    scaled_dot_product,
    time_on_gpu,
)
from ...fantasyid_core.dit.compiling import uncompiled
from ...fantasyid_core.errors import SamplingError

OVERRIDE = "optimized_attention_override"
fastest_backend = FastestBackend(time_on_gpu)


def host_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, L, D) → (B, L, H · D) by the attention that the artist chose for ComfyUI (sage, flash, split, …)."""
    return comfy.ldm.modules.attention.optimized_attention(q, k, v, q.shape[1], skip_reshape=True)


@dataclass(frozen=True)
class Attention:
    """How one call of the model attends.

    Attributes:
        blocks: the attention of the blocks, before the patches of nodes.
        injections: the attention of the injection layers.
        backend: which of PyTorch's the blocks ask for first; None: ComfyUI's order.
    """

    blocks: Attend
    injections: Attend
    backend: SDPBackend | None = None


def attention_for(transformer_options: Mapping, shape: Shape, dtype: torch.dtype, device: torch.device) -> Attention:
    """The attention of a call with these `transformer_options`, over queries (B, H, L, D).

    A node's override comes first, then what ComfyUI was started with. Only where that is PyTorch's, the fastest of its
    kernels is measured: once for every shape, so that a sampling run waits for the GPU at most in its first step.
    """
    if OVERRIDE in transformer_options:
        overridden = _Overridden(transformer_options)
        return Attention(overridden, overridden)
    chosen = comfy.ldm.modules.attention
    if chosen.optimized_attention is not chosen.attention_pytorch:
        return Attention(host_attention, host_attention)
    # nothing is known of backward passes
    backend = fastest_backend(shape, dtype, device) if _has_kernels(device) and not torch.is_grad_enabled() else None
    return Attention(host_attention if backend is None else scaled_dot_product, in_own_order, backend)


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda"


class _Overridden:
    """ComfyUI's attention with `transformer_options`, among which is a node's own attention."""

    def __init__(self, transformer_options: Mapping):
        self._transformer_options = transformer_options

    @uncompiled
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention = comfy.ldm.modules.attention.optimized_attention
        return attention(q, k, v, q.shape[1], skip_reshape=True, transformer_options=self._transformer_options)


class PatchedAttention:
    """The attention of one block with the patches that nodes put around it, `attn1_patch` and `attn1_output_patch`.

    They are called as ComfyUI's Flux calls them, text tokens first; rotary positions are on queries and keys already.

    Args:
        attend: the attention itself.
        transformer_options: those of this block, which the patches are given.
    """

    def __init__(self, attend: Attend, transformer_options: Mapping):
        self._attend, self._transformer_options = attend, transformer_options
        patches = transformer_options.get("patches", {})
        self._before, self._after = patches.get("attn1_patch", ()), patches.get("attn1_output_patch", ())

    @property
    def has_patches(self) -> bool:
        """Whether there are any."""
        return bool(self._before or self._after)

    @uncompiled
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for patch in self._before:
            more = {"pe": None, "attn_mask": None, "extra_options": self._transformer_options}
            _check_signature(patch, q, k, v, **more)
            out = patch(q, k, v, **more)
            q, k, v = out.get("q", q), out.get("k", k), out.get("v", v)
            if out.get("attn_mask") is not None:
                raise SamplingError(
                    f"The attention patch {_name(patch)} masks tokens, which this model cannot. Take the node that "
                    "sets it out of the way between FantasyID Load Model and the sampler."
                )
        attended = self._attend(q, k, v)
        for patch in self._after:
            attended = patch(attended, self._transformer_options)
        return attended


def _check_signature(patch: Callable, *args: Any, **kwargs: Any) -> None:
    try:
        inspect.signature(patch).bind(*args, **kwargs)
    except TypeError as error:
        raise SamplingError(
            f"The attention patch {_name(patch)} is for another kind of model (such as HyperTile's and ToMe's, for "
            "U-Nets). Take the node that sets it out of the way between FantasyID Load Model and the sampler."
        ) from error


def _name(patch: Callable) -> str:
    return f"'{getattr(patch, '__qualname__', type(patch).__qualname__)}'"
