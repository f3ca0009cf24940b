"""LoRAs on our `MODEL`: one more spelling of their names, and an error where not one of them fits."""

import functools
import weakref
from collections.abc import Mapping
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.weight_adapter
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...fantasyid_core.errors import WeightsError

KEY = "fantasyid_lora"
ON_CLONE = comfy.patcher_extension.CallbacksMP.ON_CLONE
KOHYA, VIDEOX_FUN = "lora_unet_", "lora_unet__"


class VideoXFunLoRA(LoRAAdapter):
    """In ComfyUI's list of formats: kohya's names with two underscores, which it knows of Wan alone."""

    @classmethod
    def load(
        cls,
        x: str,
        lora: Mapping[str, Tensor],
        alpha: float | None,
        dora_scale: Tensor | None,
        loaded_keys: set[str] | None = None,
    ) -> LoRAAdapter | None:
        """The part of `lora` for the layer that ComfyUI calls `x`; None without one under these names."""
        if not x.startswith(KOHYA):
            return None
        loaded_keys = set() if loaded_keys is None else loaded_keys
        name = VIDEOX_FUN + x.removeprefix(KOHYA)
        if (scale := lora.get(f"{name}.alpha")) is not None:
            alpha = scale.item()
            loaded_keys.add(f"{name}.alpha")
        return LoRAAdapter.load(name, lora, alpha, dora_scale, loaded_keys)


def know_spellings() -> None:
    """Put `VideoXFunLoRA` into ComfyUI's list; once, however often the pack is loaded."""
    formats = comfy.weight_adapter.adapters
    if all(known.__name__ != VideoXFunLoRA.__name__ for known in formats):
        formats.append(VideoXFunLoRA)


def refuse_misfits(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Make a patcher and its clones raise WeightsError for a LoRA of which no name fits.

    ComfyUI only logs the names. Its loaders hand a clone what fitted, here nothing.
    """
    _watch(patcher, patcher)
    patcher.add_callback_with_key(ON_CLONE, KEY, _watch)


def _watch(_: Any, patcher: comfy.model_patcher.ModelPatcher) -> None:
    # by a weak reference: ComfyUI frees a model with its last patcher, and would not see that of a circle
    patcher.add_patches = functools.partial(_add_patches, weakref.ref(patcher))


def _add_patches(patcher: weakref.ref, patches: Mapping, *args: Any, **kwargs: Any) -> list:
    if not patches:
        raise WeightsError(
            "Not one tensor of this LoRA fits FantasyID's transformer, a CogVideoX: it was made for another model, or "
            "names its layers in another way. Expected names such as transformer.transformer_blocks.0.attn1.to_q"
            ".lora_A.weight (diffusers, PEFT) or lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight (kohya, "
            "VideoX-Fun). Take a LoRA for CogVideoX 5B, or remove the LoRA node."
        )
    model = patcher()
    assert model is not None  # this is a method of its own
    return type(model).add_patches(model, patches, *args, **kwargs)
