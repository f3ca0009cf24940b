"""Injection where every sample of a batch has an identity of its own: in training, and where many people are drawn."""

import torch
from torch import Tensor

from .injection import LayerAttention


class SampleInjector:
    """Injects one identity per sample of a batch.

    Without gradients keys and values are computed once per layer: make a new one where the layers have changed.

    Args:
        tokens: (B, N, K).
        strength: (B,) factor on what is added, 0 for none; all are added as they are by default.
        shared_layer: the injection layer to use for all blocks, if there is one.
    """

    def __init__(self, tokens: Tensor, strength: Tensor | None = None, shared_layer: LayerAttention | None = None):
        self._tokens, self._shared_layer = tokens, shared_layer
        self._strength = None if strength is None else strength[:, None, None]
        self._keys_values: dict[int, tuple[Tensor, Tensor]] = {}

    def add_to(self, hidden: Tensor, layer: int, attention: LayerAttention, progress: float) -> Tensor:
        """Visual tokens (B, L, dim) after one block → the same with the identities added by injection layer `layer`."""
        attention = self._shared_layer or attention
        added = attention(hidden, self._identity(layer, attention, hidden))
        return hidden + (added if self._strength is None else self._strength.to(added) * added)

    def _identity(self, layer: int, attention: LayerAttention, like: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        tokens = self._tokens.to(like)
        if torch.is_grad_enabled():
            return tokens
        if layer not in self._keys_values:
            self._keys_values[layer] = attention.keys_values(tokens)
        return self._keys_values[layer]
