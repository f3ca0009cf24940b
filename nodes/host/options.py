"""What nodes switch on a `MODEL`: each gives a clone that shares the weights; and what is constant over a run."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
from torch import Tensor

from ...fantasyid_core.dit import fp8
from ...fantasyid_core.dit.injection import Injection, InjectionRun
from ...fantasyid_core.dit.injection import check as check_injection
from ...fantasyid_core.dit.step_cache import CacheSettings, StepCaches
from ...fantasyid_core.dit.transformer import FantasyIDTransformer
from ...fantasyid_core.errors import HardwareError, IdentityError
from .dit import CACHE, CACHES, FP8, INJECTIONS, RUN, NativeTransformer

OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


def transformer_of(model: comfy.model_patcher.ModelPatcher) -> NativeTransformer:
    """The DiT behind a `MODEL`. Raises IdentityError for a model that is none of ours."""
    transformer = getattr(model.model, "diffusion_model", None)
    if not isinstance(transformer, FantasyIDTransformer):
        kind = type(getattr(model.model, "model_config", model.model)).__name__  # ComfyUI's name, such as SD15 or Flux
        raise IdentityError(
            f"This MODEL is another kind of model ({kind}), which cannot take a FantasyID identity. "
            "Connect the MODEL of 'FantasyID Load Model' (LoRA and other patches in between are fine)."
        )
    return transformer


def add_injection(model: comfy.model_patcher.ModelPatcher, injection: Injection) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model`, sharing its weights, that injects one identity more.

    Raises:
        IdentityError: not a FantasyID model, or the identity was made for another.
    """
    check_injection(injection, transformer_of(model).layer_attention)
    model = model.clone()
    options = model.model_options["transformer_options"]
    options[INJECTIONS] = [*options.get(INJECTIONS, []), injection]
    return model


def injections_of(model: comfy.model_patcher.ModelPatcher) -> Sequence[Injection]:
    """The identities that `model` injects."""
    return model.model_options["transformer_options"].get(INJECTIONS, ())


def set_fp8_products(model: comfy.model_patcher.ModelPatcher, on: bool) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model`, sharing its weights, whose blocks multiply with 8-bit operands, or exactly.

    Raises:
        IdentityError: not a FantasyID model.
        HardwareError: the card has no such products.
    """
    transformer_of(model)
    if on and (why := fp8.missing(model.load_device)):
        raise HardwareError(
            f"fp8_products needs an NVIDIA card of compute capability 8.9 or more (RTX 40 and 50, L4, L40, H100 and "
            f"newer); {why}. Switch it off; to save memory, weight_dtype fp8_e4m3fn of Load Model works everywhere."
        )
    model = model.clone()
    model.model_options["transformer_options"][FP8] = on
    return model


def set_step_cache(
    model: comfy.model_patcher.ModelPatcher, settings: CacheSettings | None
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model`, sharing its weights, that skips steps by these settings, or computes all.

    Raises:
        IdentityError: not a FantasyID model.
    """
    transformer_of(model)
    model = model.clone()
    model.model_options["transformer_options"][CACHE] = settings
    return model


def at_once(model_options: Mapping, latents: Tensor) -> tuple[int, int, int]:
    """Frames, height and width of what the model sees at once of latents (B, C, T, H, W): all, or a context window."""
    frames, height, width = latents.shape[2:]
    return min(frames, getattr(model_options.get("context_handler"), "context_length", frames)), height, width


def around_run(executor, *args: Any, **kwargs: Any) -> Tensor:
    """Around each sampling run: what is constant over it is computed once and forgotten afterwards."""
    guider, noise = executor.class_obj, args[0]
    options, transformer = guider.model_options["transformer_options"], transformer_of(guider.model_patcher)
    size = at_once(guider.model_options, noise)
    transformer.check_sizes(*size)
    if not transformer.trained_at(*size):
        logging.warning("FantasyID: this model knows %s; other videos come out worse.", transformer.trained_size)
    constant = "registered_hooks" not in guider.model_options  # hooks swap weights in the middle of a run
    options[RUN] = InjectionRun(options.get(INJECTIONS, ()), keep=constant)
    caches = options[CACHES] = StepCaches(options[CACHE]) if options.get(CACHE) else None
    transformer.start_run(keep=constant)
    try:
        latents = executor(*args, **kwargs)
        if caches is not None:
            logging.info("FantasyID: %s.", caches.report())
        return latents
    finally:
        options.pop(RUN, None)
        options.pop(CACHES, None)
        transformer.start_run(keep=False)
