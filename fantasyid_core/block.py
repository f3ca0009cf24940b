"""One DiT block on diffusers' modules and weights, with its small operations fused."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor, nn

from .fp8 import Rows8, product, rows8, weight8
from .kernels import Rotary, gated_add, modulate, norm_rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
WeightsOf = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
Compute = Callable[[Tensor, Tensor | None], Tensor]
Borrow = Callable[[nn.Module, torch.device, torch.dtype, Compute], Tensor]


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys, values (B, H, L, D) → (B, L, H · D)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def own_weights(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer norm, on the device and in the dtype of `like`."""
    return norm.weight.to(like), norm.bias.to(like)


def with_own_weights(layer: nn.Module, device: torch.device, dtype: torch.dtype, compute: Compute) -> Tensor:
    """`compute` on weight and bias of a linear layer; either in the dtype asked for or stored in fp8."""
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
    ) -> tuple[Tensor, Tensor]:
        """Visual tokens (B, L, dim), text tokens (B, N, dim), time embedding (B, T) → visual and text tokens.

        fp8: the large products with 8-bit operands.
        """
        visual, words = hidden_states, encoder_hidden_states
        joint, gates = self._modulated(self.norm1, visual, words, temb)
        visual, words = _updated(visual, words, self._attention(joint, words.shape[1], image_rotary_emb, fp8), gates)
        joint, gates = self._modulated(self.norm2, visual, words, temb)
        return _updated(visual, words, self._feed_forward(joint, fp8), gates)

    def _attention(self, joint: Tensor, words: int, rotary: Rotary | None, fp8: bool) -> Tensor:
        attn, dtype = self.attn1, joint.dtype
        joint = rows8(joint) if fp8 else joint
        q, k, v = (
            self._product(layer, joint, dtype).unflatten(2, (attn.heads, -1))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        q, k = (
            norm_rotate(x, *self.weights_of(norm, x), norm.eps, rotary, words)
            for x, norm in ((q, attn.norm_q), (k, attn.norm_k))
        )
        out = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self._product(attn.to_out[0], rows8(out) if fp8 else out, dtype)

    def _feed_forward(self, joint: Tensor, fp8: bool) -> Tensor:
        up, dtype = self.ff.net[0], joint.dtype
        if not fp8 or not isinstance(up, GELU):
            return self.ff(joint)
        hidden = up.gelu(self._product(up.proj, rows8(joint), dtype))
        return self._product(self.ff.net[2], rows8(hidden), dtype)

    def _product(self, layer: nn.Module, x: Tensor | Rows8, dtype: torch.dtype) -> Tensor:
        if isinstance(x, Tensor):
            return layer(x)
        return self.borrow(layer, x.values.device, dtype, lambda w, b: product(x, weight8(w), b, dtype))

    def _modulated(
        self, zero: nn.Module, visual: Tensor, words: Tensor, time: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """diffusers' `CogVideoXLayerNormZero` → text and visual tokens in one tensor, the gates of both."""
        n = words.shape[1]
        shift, scale, gate, words_shift, words_scale, words_gate = zero.linear(zero.silu(time)).chunk(6, dim=1)
        weight, bias = self.weights_of(zero.norm, visual)
        joint = visual.new_empty(len(visual), n + visual.shape[1], visual.shape[2])
        modulate(words, weight, bias, words_scale, words_shift, zero.norm.eps, joint[:, :n])
        modulate(visual, weight, bias, scale, shift, zero.norm.eps, joint[:, n:])
        return joint, (gate, words_gate)


def _updated(visual: Tensor, words: Tensor, update: Tensor, gates: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    n = words.shape[1]
    return gated_add(visual, update[:, n:], gates[0]), gated_add(words, update[:, :n], gates[1])
