"""What nodes switch on a `MODEL`: each gives a clone that shares the weights; and what is constant over a run."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor

from ...fantasyid_core.dit import fp8
from ...fantasyid_core.dit.config import FPS, TIME_SCALE
from ...fantasyid_core.dit.injection import Injection
from ...fantasyid_core.dit.injection import check as check_injection
from ...fantasyid_core.dit.step_cache import CacheSettings
from ...fantasyid_core.dit.transformer import FantasyIDTransformer
from ...fantasyid_core.errors import HardwareError, IdentityError, SamplingError
from ...fantasyid_core.sampling.defaults import SamplingDefaults
from . import notes
from .dit import NativeTransformer
from .guidance import mark, negative_model
from .run import KEY, Options, Run

OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
USE_ITS_SIZE = "Set 'settings' to 'default for this model', or width, height and frames to what it knows."
MOST_WORK = 16.0  # times what a model was trained on; more is an hour's wait for noise


def transformer_of(model: comfy.model_patcher.ModelPatcher) -> NativeTransformer:
    """The DiT behind a `MODEL`. Raises IdentityError for a model that is none of ours."""
    transformer = getattr(model.model, "diffusion_model", None)
    if not isinstance(transformer, FantasyIDTransformer):
        kind = type(getattr(model.model, "model_config", model.model)).__name__  # ComfyUI's name, such as SD15 or Flux
        raise IdentityError(
            f"This MODEL is another kind of model ({kind}), which cannot take a FantasyID identity. "
            "Connect the MODEL of 'FantasyID Load Model' (LoRA and other patches in between are fine)."
        )
    return cast(NativeTransformer, transformer)


def defaults_of(model: comfy.model_patcher.ModelPatcher) -> SamplingDefaults:
    """What a `MODEL` was made to be sampled with. Raises IdentityError for a model that is none of ours."""
    return transformer_of(model).defaults


def is_windowed(model: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether a `MODEL` makes videos longer than it knows, window by window."""
    return model.model_options.get("context_handler") is not None


def add_injection(model: comfy.model_patcher.ModelPatcher, injection: Injection) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model`, sharing its weights, that injects one identity more.

    Raises:
        IdentityError: not a FantasyID model, or the identity was made for another.
    """
    check_injection(injection, transformer_of(model).layer_attention)
    return _with(model, injections=(*injections_of(model), injection))


def injections_of(model: comfy.model_patcher.ModelPatcher) -> tuple[Injection, ...]:
    """The identities that `model` injects."""
    return Options.of(model.model_options["transformer_options"]).injections


def _with(model: comfy.model_patcher.ModelPatcher, **changes: Any) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model`, sharing its weights, with other `Options`."""
    model = model.clone()
    options = model.model_options["transformer_options"]
    options[KEY] = replace(Options.of(options), **changes)
    return model


def set_fp8_products(model: comfy.model_patcher.ModelPatcher, on: bool) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model`, sharing its weights, whose blocks multiply with 8-bit operands, or exactly.

    Raises:
        IdentityError: not a FantasyID model.
        HardwareError: the card has no such products.
    """
    transformer_of(model)
    if on:
        _check_fp8(model)
    return _with(model, fp8=on)


def _check_fp8(model: comfy.model_patcher.ModelPatcher) -> None:
    for card in cards_of(model):
        if why := fp8.missing(card):
            raise HardwareError(
                f"fp8_products needs an NVIDIA card of compute capability 8.9 or more (RTX 40 and 50, L4, L40, H100 "
                f"and newer); {why}. Switch it off; to save memory, weight_dtype fp8_e4m3fn of Load Model works "
                "everywhere."
            )


def cards_of(model: comfy.model_patcher.ModelPatcher) -> list[torch.device]:
    """What a `MODEL` is sampled on: its own card, then those that ComfyUI's MultiGPU CFG Split (0.33) added."""
    return [model.load_device, *(copy.load_device for copy in model.get_additional_models_with_key("multigpu"))]


def set_step_cache(
    model: comfy.model_patcher.ModelPatcher, settings: CacheSettings | None
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model`, sharing its weights, that skips steps by these settings, or computes all.

    Raises:
        IdentityError: not a FantasyID model.
    """
    transformer_of(model)
    return _with(model, step_cache=settings)


def at_once(model_options: Mapping, latents: Tensor) -> tuple[int, int, int]:
    """Frames, height and width of what the model sees at once of latents (B, C, T, H, W): all, or a context window."""
    frames, height, width = latents.shape[2:]
    return min(frames, getattr(model_options.get("context_handler"), "context_length", frames)), height, width


def check_size(model_options: Mapping, latents: Tensor, transformer: NativeTransformer) -> tuple[int, int, int]:
    """`at_once`, where the model can and should be asked for it.

    Raises:
        SamplingError: the size does not suit the model, or is far above what it knows.
    """
    size = at_once(model_options, latents)
    transformer.check_sizes(*size)
    if (work := transformer.work_at(*size)) > MOST_WORK:
        frames, height, width = size
        raise SamplingError(
            f"{width * 8} × {height * 8} pixels and {4 * frames - 3} frames are {work:.0f} times what this model knows "
            f"({transformer.trained_size}): it would take at least {work:.0f} times as long and come out as noise. "
            f"{USE_ITS_SIZE}"
        )
    return size


def other_size(transformer: NativeTransformer, size: tuple[int, int, int]) -> str:
    """What to expect of latents of `size` (frames, height, width) that the model was not trained on, and the cure."""
    work = transformer.work_at(*size)
    longer = f" and take at least {work:.0f} times as long" if work >= 1.5 else ""
    return (
        f"Cancel if not meant: the model knows {transformer.trained_size}. Other videos come out worse{longer}. "
        f"{USE_ITS_SIZE}{transformer.other_shape(*size[1:])}"
    )


def _check_regions(injections: Sequence[Injection], size: Sequence[int], patch_size: int) -> None:
    """Say before the wait what is odd about where and when identities act in latents of `size` (frames, height, width).

    Raises:
        SamplingError: a mask does not fit the video.
    """
    frames, height, width = size
    for injection in injections:
        region = injection.region
        if region.is_everywhere:
            continue
        weights = region.weights(frames, height // patch_size, width // patch_size)
        if not weights.any():
            seconds = ((frames - 1) * TIME_SCALE + 1) / region.fps
            notes.warn(
                "An identity acts nowhere: its mask is black where its seconds are, or they lie after the end of the "
                f"video of {seconds:.1f} s."
            )
        if (
            region.mask is not None
            and abs(math.log(region.mask.shape[2] * height / region.mask.shape[1] / width)) > 0.1
        ):
            notes.warn(
                f"An identity's mask of {region.mask.shape[2]} × {region.mask.shape[1]} pixels is stretched to the "
                f"video's shape, {width * 8} × {height * 8}."
            )


def _check_acting(injections: Sequence[Injection], frames: int) -> None:
    """Say before the wait where a face acts for another time than a video of so many latent frames takes."""
    seconds = ((frames - 1) * TIME_SCALE + 1) / FPS
    for injection in injections:
        acts = 0 if injection.frame_tokens is None else len(injection.frame_tokens)
        if acts and acts != frames:
            after = "its last moment holds from then on" if acts < frames else "the rest is left out"
            notes.warn(
                f"A face acts for {((acts - 1) * TIME_SCALE + 1) / FPS:.1f} s, but the video takes {seconds:.1f} s: "
                f"{after}."
            )


def around_run(executor, *args: Any, **kwargs: Any) -> Tensor:
    """Around each sampling run: what is constant over it is computed once and forgotten afterwards."""
    guider, noise = executor.class_obj, args[0]
    options, transformer = guider.model_options["transformer_options"], transformer_of(guider.model_patcher)
    size = check_size(guider.model_options, noise, transformer)
    notes.show()
    if not transformer.trained_at(*size):
        notes.warn(other_size(transformer, size))
    ours = Options.of(options)
    _check_regions(ours.injections, noise.shape[2:], transformer.config.patch_size)
    _check_acting(ours.injections, noise.shape[2])
    mark(guider, ours.injections)
    constant = "registered_hooks" not in guider.model_options  # hooks swap weights in the middle of a run
    negative = negative_model(guider)
    if ours.fp8:
        _check_fp8(guider.model_patcher)  # the node that adds cards may come after the one that asks for 8 bits
    run = Run(
        ours.injections,
        ours.step_cache,
        None if negative is None else injections_of(negative),
        card=guider.model_patcher.load_device,
        keep=constant,
        frames=noise.shape[2],
    )
    options[KEY] = replace(ours, run=run)
    try:
        latents = executor(*args, **kwargs)
        if report := run.report():
            logging.info("FantasyID: %s.", report)
        return latents
    finally:
        options[KEY] = ours
