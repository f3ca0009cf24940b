"""diffusers' CogVideoX transformer, which ours is compared with and whose learned positions it takes."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers' CogVideoX transformer takes of a published `config.json`."""
    known = inspect.signature(CogVideoXTransformer3DModel.__init__).parameters
    return {name: value for name, value in config.items() if name in known}


def transformer(config: Mapping[str, Any]) -> CogVideoXTransformer3DModel:
    """diffusers' CogVideoX transformer of these sizes, on the current default device, without its weights."""
    return CogVideoXTransformer3DModel(**arguments(config))


def positions(config: Mapping[str, Any]) -> Tensor:
    """(1, text and video tokens, dim) the learned positions as diffusers constructs them, before training."""
    with torch.device("cpu"):
        model = transformer({**config, "num_layers": 0, "use_learned_positional_embeddings": True})
    return model.patch_embed.pos_embedding
