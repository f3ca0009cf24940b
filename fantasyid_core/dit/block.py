"""One DiT block of CogVideoX, with its small operations fused."""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..operations import TORCH, Operations
from .attention import Attend, scaled_dot_product
from .config import TransformerConfig
from .fp8 import dequantise, fp8_matmul, quantise_weight
from .kernels import (
    Modulation,
    Norm,
    Rotary,
    RowwiseFp8,
    WeightsOf,
    gated_add,
    gelu_fp8,
    linear_gelu,
    modulate,
    modulate_fp8,
    own_weights,
    qk_norm_rope,
    quantise_rows,
)

Compute = Callable[[Tensor, Tensor | None], Tensor]
WithWeights = Callable[[nn.Linear, torch.device, torch.dtype, bool, Compute], Tensor]


def with_own_weights(layer: nn.Linear, device: torch.device, dtype: torch.dtype, fp8: bool, compute: Compute) -> Tensor:
    """`compute` on weight and bias of a linear layer, on `device` and in `dtype`; fp8: or as they are stored, if so."""
    return compute(layer.weight, layer.bias)


class AdaLayerNormZero(nn.Module):
    """The layers of a norm that the time embedding modulates and gates; the block computes with them."""

    def __init__(self, config: TransformerConfig, operations: Operations = TORCH):
        super().__init__()
        self.linear = operations.Linear(config.time_embed_dim, 6 * config.dim)
        self.norm = operations.LayerNorm(config.dim, eps=config.norm_eps)


class SelfAttention(nn.Module):
    """The layers of the attention over text and video; the block computes with them."""

    def __init__(self, config: TransformerConfig, operations: Operations = TORCH):
        super().__init__()
        self.heads = config.num_attention_heads
        self.norm_q = operations.LayerNorm(config.attention_head_dim, eps=1e-6)
        self.norm_k = operations.LayerNorm(config.attention_head_dim, eps=1e-6)
        self.to_q = operations.Linear(config.dim, config.dim, bias=config.attention_bias)
        self.to_k = operations.Linear(config.dim, config.dim, bias=config.attention_bias)
        self.to_v = operations.Linear(config.dim, config.dim, bias=config.attention_bias)
        self.to_out = nn.ModuleList([operations.Linear(config.dim, config.dim)])  # names are diffusers': to_out.0


class LinearGELU(nn.Module):
    """A linear layer, then GELU in its tanh form."""

    def __init__(self, channels_in: int, channels_out: int, operations: Operations = TORCH):
        super().__init__()
        self.proj = operations.Linear(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Up to four times the width and down again."""

    def __init__(self, dim: int, operations: Operations = TORCH):
        super().__init__()
        up, down = LinearGELU(dim, 4 * dim, operations), operations.Linear(4 * dim, dim)
        self.net = nn.Sequential(up, nn.Identity(), down)  # names are diffusers', which has a dropout between: net.2

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """A block under diffusers' names: the same computation as its `CogVideoXBlock`."""

    def __init__(self, config: TransformerConfig, operations: Operations = TORCH):
        super().__init__()
        self.norm1 = AdaLayerNormZero(config, operations)
        self.attn1 = SelfAttention(config, operations)
        self.norm2 = AdaLayerNormZero(config, operations)
        self.ff = FeedForward(config.dim, operations)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        *,
        fp8: bool = False,
        attend: Attend = scaled_dot_product,
        weights_of: WeightsOf = own_weights,
        with_weights: WithWeights = with_own_weights,
    ) -> tuple[Tensor, Tensor]:
        """Video tokens (B, L, dim), text tokens (B, N, dim), time embedding (B, T) → video and text tokens.

        Args:
            fp8: the large matmuls with 8-bit operands.
            attend: the attention to compute with.
            weights_of, with_weights: weight and bias of a layer norm, and a computation on those of a linear layer,
                where a caller holds them elsewhere or patches them: what is fused does not go through the layer.
        """
        text_tokens = encoder_hidden_states.shape[1]
        joint, gates = self._modulated(self.norm1, hidden_states, encoder_hidden_states, temb, fp8, weights_of)
        update = self._attention(
            joint, hidden_states.dtype, text_tokens, image_rotary_emb, attend, weights_of, with_weights
        )
        hidden_states, encoder_hidden_states = _updated(hidden_states, encoder_hidden_states, update, gates)
        joint, gates = self._modulated(self.norm2, hidden_states, encoder_hidden_states, temb, fp8, weights_of)
        update = self._feed_forward(joint, hidden_states.dtype, with_weights)
        return _updated(hidden_states, encoder_hidden_states, update, gates)

    def _attention(
        self,
        joint: Tensor | RowwiseFp8,
        dtype: torch.dtype,
        text_tokens: int,
        image_rotary_emb: Rotary | None,
        attend: Attend,
        weights_of: WeightsOf,
        with_weights: WithWeights,
    ) -> Tensor:
        attn = self.attn1
        q, k, v = (
            _linear(layer, joint, dtype, with_weights).unflatten(2, (attn.heads, -1))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        q = qk_norm_rope(q, Norm(*weights_of(attn.norm_q, q), attn.norm_q.eps), image_rotary_emb, text_tokens)
        k = qk_norm_rope(k, Norm(*weights_of(attn.norm_k, k), attn.norm_k.eps), image_rotary_emb, text_tokens)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return _linear(
            attn.to_out[0], quantise_rows(out) if isinstance(joint, RowwiseFp8) else out, dtype, with_weights
        )

    def _feed_forward(self, joint: Tensor | RowwiseFp8, dtype: torch.dtype, with_weights: WithWeights) -> Tensor:
        up: Any = self.ff.net[0]
        down = self.ff.net[2]
        if isinstance(joint, RowwiseFp8):
            return _linear(down, gelu_fp8(_linear(up.proj, joint, dtype, with_weights)), dtype, with_weights)
        if self.training or not _is_linear(up.proj):
            return self.ff(joint)
        return down(with_weights(up.proj, joint.device, dtype, False, lambda w, b: linear_gelu(joint, w, b)))

    def _modulated(
        self,
        zero: AdaLayerNormZero,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        fp8: bool,
        weights_of: WeightsOf,
    ) -> tuple[Tensor | RowwiseFp8, tuple[Tensor, Tensor]]:
        """Text and video tokens, normed and modulated, in one tensor, and the gates of video and text."""
        shift, scale, gate, text_shift, text_scale, text_gate = zero.linear(F.silu(temb)).chunk(6, dim=1)
        norm = Norm(*weights_of(zero.norm, hidden_states), zero.norm.eps)
        modulation = Modulation(scale, shift, text_scale, text_shift)
        joint = (modulate_fp8 if fp8 else modulate)(hidden_states, encoder_hidden_states, norm, modulation)
        return joint, (gate, text_gate)


def _linear(layer: nn.Module, x: Tensor | RowwiseFp8, dtype: torch.dtype, with_weights: WithWeights) -> Tensor:
    if not isinstance(x, RowwiseFp8):
        return layer(x)
    if not _is_linear(layer):
        return layer(dequantise(x, dtype))
    return with_weights(layer, x.values.device, dtype, True, lambda w, b: fp8_matmul(x, quantise_weight(w), b, dtype))


def _is_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer does what its weight and bias say: an adapter may have replaced it, or its call."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return isinstance(layer, nn.Linear) and "forward" not in layer.__dict__ and not hooked


def _updated(
    hidden_states: Tensor, encoder_hidden_states: Tensor, update: Tensor, gates: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    text_tokens = encoder_hidden_states.shape[1]
    hidden_states = gated_add(hidden_states, update[:, text_tokens:], gates[0])
    return hidden_states, gated_add(encoder_hidden_states, update[:, :text_tokens], gates[1])
