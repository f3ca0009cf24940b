"""One DiT block on diffusers' modules and weights, with its small operations fused."""

from collections.abc import Callable

import torch
from diffusers.models.activations import GELU
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor, nn

from .attention import Attend, scaled_dot_product
from .fp8 import dequantised, product, weight8
from .kernels import (
    Modulation,
    Norm,
    Rotary,
    Rows8,
    WeightsOf,
    gated_add,
    gelu8,
    linear_gelu,
    modulate,
    modulate8,
    norm_rotate,
    own_weights,
    rows8,
)

Compute = Callable[[Tensor, Tensor | None], Tensor]
Borrow = Callable[[nn.Module, torch.device, torch.dtype, bool, Compute], Tensor]


def with_own_weights(layer: nn.Module, device: torch.device, dtype: torch.dtype, fp8: bool, compute: Compute) -> Tensor:
    """`compute` on weight and bias of a linear layer, on `device` and in `dtype`; fp8: or as they are stored, if so."""
    return compute(layer.weight, layer.bias)


class FusedBlock(CogVideoXBlock):
    """The same computation as diffusers' block.

    A host may replace `attend` by its attention, and `weights_of` (of a layer norm) and `borrow` (of a linear layer)
    where it holds weights elsewhere or patches them.
    """

    attend: Attend = staticmethod(scaled_dot_product)
    weights_of: WeightsOf = staticmethod(own_weights)
    borrow: Borrow = staticmethod(with_own_weights)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        fp8: bool = False,
        attend: Attend | None = None,
        weights_of: WeightsOf | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Visual tokens (B, L, dim), text tokens (B, N, dim), time embedding (B, T) → visual and text tokens.

        Args:
            fp8: the large products with 8-bit operands.
            attend, weights_of: for this call, in place of the block's own.
        """
        attend, weights_of = attend or self.attend, weights_of or self.weights_of
        visual, words = hidden_states, encoder_hidden_states
        joint, gates = self._modulated(self.norm1, visual, words, temb, fp8, weights_of)
        update = self._attention(joint, visual.dtype, words.shape[1], image_rotary_emb, attend, weights_of)
        visual, words = _updated(visual, words, update, gates)
        joint, gates = self._modulated(self.norm2, visual, words, temb, fp8, weights_of)
        return _updated(visual, words, self._feed_forward(joint, visual.dtype), gates)

    def _attention(
        self,
        joint: Tensor | Rows8,
        dtype: torch.dtype,
        words: int,
        rotary: Rotary | None,
        attend: Attend,
        weights_of: WeightsOf,
    ) -> Tensor:
        attn = self.attn1
        q, k, v = (
            self._product(layer, joint, dtype).unflatten(2, (attn.heads, -1))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        q = norm_rotate(q, Norm(*weights_of(attn.norm_q, q), attn.norm_q.eps), rotary, words)
        k = norm_rotate(k, Norm(*weights_of(attn.norm_k, k), attn.norm_k.eps), rotary, words)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self._product(attn.to_out[0], rows8(out) if isinstance(joint, Rows8) else out, dtype)

    def _feed_forward(self, joint: Tensor | Rows8, dtype: torch.dtype) -> Tensor:
        up, down = self.ff.net[0], self.ff.net[2]
        if isinstance(joint, Rows8):
            return self._product(down, gelu8(self._product(up.proj, joint, dtype)), dtype)
        if self.training or not isinstance(up, GELU) or up.approximate != "tanh" or not _is_linear(up.proj):
            return self.ff(joint)
        return down(self.borrow(up.proj, joint.device, dtype, False, lambda w, b: linear_gelu(joint, w, b)))

    def _product(self, layer: nn.Module, x: Tensor | Rows8, dtype: torch.dtype) -> Tensor:
        if not isinstance(x, Rows8):
            return layer(x)
        if not _is_linear(layer):
            return layer(dequantised(x, dtype))
        return self.borrow(layer, x.values.device, dtype, True, lambda w, b: product(x, weight8(w), b, dtype))

    def _modulated(
        self, zero: nn.Module, visual: Tensor, words: Tensor, time: Tensor, fp8: bool, weights_of: WeightsOf
    ) -> tuple[Tensor | Rows8, tuple[Tensor, Tensor]]:
        """diffusers' `CogVideoXLayerNormZero` → text and visual tokens in one tensor, the gates of both."""
        shift, scale, gate, words_shift, words_scale, words_gate = zero.linear(zero.silu(time)).chunk(6, dim=1)
        norm = Norm(*weights_of(zero.norm, visual), zero.norm.eps)
        joint = (modulate8 if fp8 else modulate)(
            visual, words, norm, Modulation(scale, shift, words_scale, words_shift)
        )
        return joint, (gate, words_gate)


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer does what its weight and bias say: an adapter may have replaced it, or its call."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return isinstance(layer, nn.Linear) and "forward" not in layer.__dict__ and not hooked


def _updated(visual: Tensor, words: Tensor, update: Tensor, gates: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    n = words.shape[1]
    return gated_add(visual, update[:, n:], gates[0]), gated_add(words, update[:, :n], gates[1])
