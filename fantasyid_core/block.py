"""One DiT block on diffusers' modules and weights, with its small operations fused."""

from collections.abc import Callable

import torch.nn.functional as F
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor, nn

from .kernels import Rotary, gated_add, modulate, norm_rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
WeightsOf = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys, values (B, H, L, D) → (B, L, H · D)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def own_weights(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer norm, on the device and in the dtype of `like`."""
    return norm.weight.to(like), norm.bias.to(like)


class FusedBlock(CogVideoXBlock):
    """The same computation as diffusers' block.

    A host may replace `attend` by its attention, and `weights_of` where it holds weights elsewhere or patches them.
    """

    attend: Attend = staticmethod(scaled_dot_product)
    weights_of: WeightsOf = staticmethod(own_weights)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, image_rotary_emb: Rotary | None = None
    ) -> tuple[Tensor, Tensor]:
        """Visual tokens (B, L, dim), text tokens (B, N, dim), time embedding (B, T) → visual and text tokens."""
        visual, words = hidden_states, encoder_hidden_states
        joint, gates = self._modulated(self.norm1, visual, words, temb)
        visual, words = _updated(visual, words, self._attention(joint, words.shape[1], image_rotary_emb), gates)
        joint, gates = self._modulated(self.norm2, visual, words, temb)
        return _updated(visual, words, self.ff(joint), gates)

    def _attention(self, joint: Tensor, words: int, rotary: Rotary | None) -> Tensor:
        attn = self.attn1
        q, k, v = (project(joint).unflatten(2, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v))
        q, k = (
            norm_rotate(x, *self.weights_of(norm, x), norm.eps, rotary, words)
            for x, norm in ((q, attn.norm_q), (k, attn.norm_k))
        )
        return attn.to_out[0](self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)))

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
