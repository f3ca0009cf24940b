"""The video DiT as a native `MODEL`: the host loads, streams, patches and samples it like one of its own."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ..fantasyid_core import fp8
from ..fantasyid_core.errors import HardwareError, IdentityError, WeightsError
from ..fantasyid_core.injection import Injection, InjectionRun
from ..fantasyid_core.injection import check as check_injection
from ..fantasyid_core.kernels import Rotary
from ..fantasyid_core.mapped_memory import store_as
from ..fantasyid_core.sampling import RELEASE_SCHEDULE, TRAIN_STEPS
from ..fantasyid_core.step_cache import CacheSettings, StepCaches
from ..fantasyid_core.transformer import FantasyIDTransformer, from_published
from ..fantasyid_core.video import first_frame_condition
from ..fantasyid_core.weights import Published, configured
from ._operators import borrow, to_host_operators

DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
SUPPORTED = [torch.bfloat16, torch.float16, torch.float32]
INJECTIONS, RUN, FP8 = "fantasyid_injections", "fantasyid_run", "fantasyid_fp8"
CACHE, CACHES = "fantasyid_step_cache", "fantasyid_step_caches"
UNCONDITIONAL = 1  # the host's number for that branch
OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


def host_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, L, D) → (B, L, H · D) by the attention that the artist chose for the host (sage, flash, split, …)."""
    return optimized_attention(q, k, v, q.shape[1], skip_reshape=True)


class NativeTransformer(FantasyIDTransformer):
    """The DiT in the host's calling convention, (B, C, T, H, W), taking part in its wrappers and block patches."""

    _rotary: tuple[tuple, Rotary | None] = ((), None)
    _norms: dict[tuple, tuple[Tensor, Tensor]] | None = None

    @torch.compiler.disable(recursive=False)
    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, control=None, transformer_options: Mapping = {}, **extra
    ) -> Tensor:
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, transformer_options, **extra)

    @torch.compiler.disable(recursive=False)
    def _predict(self, x: Tensor, timesteps: Tensor, context: Tensor, control, options: Mapping, **extra) -> Tensor:
        run = options.get(RUN) or InjectionRun(options.get(INJECTIONS, ()))
        run.unconditional = tuple(branch == UNCONDITIONAL for branch in options.get("cond_or_uncond", ()))
        caches: StepCaches | None = options.get(CACHES)
        # reading a timestep back from the GPU waits for it, so only where something acts on a part of the run
        wanted = run.depends_on_progress or caches is not None
        progress = 1 - timesteps[0].item() / (TRAIN_STEPS - 1) if wanted else 0.0
        velocity = super().forward(
            x.transpose(1, 2),
            context,
            timesteps,
            rotary=self._rotary_for(x),
            run=run,
            progress=progress,
            run_block=_BlockPatches(options, x),
            cache=None if caches is None else caches.of(tuple(_window(options) or ())),
            # where an identity sets in or ends, a step is not like the one before
            branch=(*options.get("uuids", ()), *(injection.acts(progress) for injection in run.injections)),
        )
        return velocity.transpose(1, 2)

    def start_run(self, keep: bool) -> None:
        """Forget the layer norms' weights; keep those of the run that starts now, if they are constant over it.

        Streaming such small tensors anew for every block would wait for the card each time.
        """
        self._norms = {} if keep else None

    def norm_weights(self, norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer norm as the host has them: from wherever it holds them, patched by it."""
        if self._norms is None or torch.compiler.is_compiling():
            return comfy.ops.cast_bias_weight(norm, like)
        key = (norm, like.device, like.dtype)
        if key not in self._norms:
            self._norms[key] = comfy.ops.cast_bias_weight(norm, like)
        return self._norms[key]

    @torch.compiler.disable
    def _rotary_for(self, x: Tensor) -> Rotary | None:
        key = (*x.shape[2:], x.device)
        if self._rotary[0] != key:
            self._rotary = (key, self.rotary_embedding(*x.shape[2:], x.device))
        return self._rotary[1]


def _window(options: Mapping) -> list[int] | None:
    """The latent frames of the context window that is being predicted; None for the whole video."""
    return getattr(options.get("context_window"), "index_list", None)


class _BlockPatches:
    """Runs one block as the host's other models do: `patches_replace` around it, `double_block` patches after it."""

    def __init__(self, options: Mapping, x: Tensor):
        self.options, self.x, self.fp8 = options, x, options.get(FP8, False)
        self.replace = options.get("patches_replace", {}).get("dit", {})
        self.after = options.get("patches", {}).get("double_block", [])

    @torch.compiler.disable(recursive=False)
    def __call__(
        self, index: int, block: nn.Module, visual: Tensor, words: Tensor, time: Tensor, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        args = {"img": visual, "txt": words, "vec": time, "pe": rotary, "transformer_options": self.options}
        replace = self.replace.get(("double_block", index))
        original = functools.partial(self._original, block)
        out = original(args) if replace is None else replace(args, {"original_block": original})
        for patch in self.after:
            out = patch({**out, "x": self.x, "vec": time, "block_index": index, "transformer_options": self.options})
        return out["img"], out["txt"]

    @torch.compiler.disable(recursive=False)
    def _original(self, block: nn.Module, args: Mapping) -> dict[str, Tensor]:
        run = functools.partial(_run_eagerly, block) if _is_streamed(block, args["img"].device) else block
        img, txt = run(args["img"], args["txt"], args["vec"], args["pe"], fp8=self.fp8)
        return {"img": img, "txt": txt}


@torch.compiler.disable
def _is_streamed(block: nn.Module, device: torch.device) -> bool:
    """Whether the host holds a part of a block's weights elsewhere than the block computes."""
    return any(parameter.device != device for parameter in block.parameters())


@torch.compiler.disable
def _run_eagerly(block: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """A streamed block, which is not to be compiled: every set of layers that are elsewhere would make code of its own,
    until torch gives up (1.69 s a step compiled, 1.46 s not, where an H100 had 7 GiB free)."""
    return getattr(block, "_orig_mod", block)(*args, **options)  # beneath a wrapper that compiles this block


class CogVideoXLatents(comfy.latent_formats.LatentFormat):
    """16 channels; the colours of live previews are a linear fit that the community made for CogVideoX's VAE."""

    latent_channels = 16
    latent_dimensions = 3
    scale_factor = 0.7
    latent_rgb_factors = (
        *((0.1195, 0.0992, -0.0048), (-0.0012, 0.0550, 0.0213), (-0.0141, -0.0087, -0.0210), (0.0306, 0.1219, 0.0140)),
        *((0.0927, 0.0303, 0.0508), (0.0379, 0.0494, 0.0586), (0.0177, 0.0088, 0.0360), (0.1061, 0.0234, 0.0572)),
        *((0.1274, -0.0110, 0.0433), (-0.0187, 0.0822, 0.1061), (0.0084, 0.0762, 0.0930), (0.1294, 0.1236, 0.0448)),
        *((0.0457, 0.0411, -0.0177), (0.0002, -0.0140, 0.0533), (0.0808, 0.1155, -0.0215), (-0.0152, -0.0058, 0.0722)),
    )


class FantasyIDConfig(comfy.supported_models_base.BASE):
    """What the host asks a model configuration; sampling settings are the release's schedule."""

    unet_extra_config: ClassVar[dict] = {}
    sampling_settings: ClassVar[dict] = {
        "beta_schedule": "linear",  # the host's name for scaled_linear
        "linear_start": RELEASE_SCHEDULE["beta_start"],
        "linear_end": RELEASE_SCHEDULE["beta_end"],
        "timesteps": TRAIN_STEPS,
        "zsnr": True,
    }
    latent_format = CogVideoXLatents
    # 4.4 GiB for 49 × 480 × 720 with both guidance branches. On an H100 2.2 were measured, and 3.4 before blocks were
    # fused, which they are not on every machine.
    memory_usage_factor = 1.6


class FantasyIDModel(comfy.model_base.QwenImage):
    """The host's wrapper of the DiT. Only `isinstance` is wanted of its base class: the host maps LoRA names with the
    prefix `transformer.`, as diffusers and PEFT write them, for that class and a few others by name."""

    def __init__(self, config: FantasyIDConfig, transformer: NativeTransformer, device: torch.device | None):
        config.unet_config["disable_unet_model_creation"] = True
        comfy.model_base.BaseModel.__init__(self, config, comfy.model_base.ModelType.V_PREDICTION, device=device)
        self.diffusion_model = transformer

    extra_conds = comfy.model_base.BaseModel.extra_conds
    extra_conds_shapes = comfy.model_base.BaseModel.extra_conds_shapes

    def get_dtype(self) -> torch.dtype:
        return self.diffusion_model.proj_out.weight.dtype

    def _apply_model(self, x: Tensor, t: Tensor, c_concat: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """The host cuts noise into context windows, but not always the image latents: those of the same frames."""
        window = _window(kwargs.get("transformer_options") or (args[2] if len(args) > 2 else {}))
        if c_concat is not None and window is not None and c_concat.shape[2] != x.shape[2]:
            c_concat = c_concat[:, :, window]
        return super()._apply_model(x, t, c_concat, *args, **kwargs)

    def concat_cond(self, **kwargs: Any) -> Tensor | None:
        """The image latents (B, 16, T, H, W): the conditioning's `concat_latent_image`, else zeros.

        Zeros as well for a model that was trained without a first frame.
        """
        noise, image = kwargs["noise"], kwargs.get("concat_latent_image")
        channels = self.diffusion_model.config.in_channels - noise.shape[1]
        if channels <= 0:
            return None
        if image is None or not self.diffusion_model.first_frame_condition:
            return noise.new_zeros(noise.shape[0], channels, *noise.shape[2:])
        if image.shape[-2:] != noise.shape[-2:]:
            raise IdentityError(
                f"The image condition is {image.shape[-1] * 8} × {image.shape[-2] * 8} pixels, the video "
                f"{noise.shape[-1] * 8} × {noise.shape[-2] * 8}. Make both with the same width and height."
            )
        image = first_frame_condition(self.process_latent_in(image).to(kwargs["device"]), noise.shape[2])
        return comfy.utils.resize_to_batch_size(image, noise.shape[0])


def load_model(
    config: Mapping, published: Published, weight_dtype: str = "default", vae_config: Mapping = {}
) -> comfy.model_patcher.ModelPatcher:
    """The published transformer as a host `MODEL`.

    Args:
        config: the transformer's `config.json`.
        weight_dtype: a key of DTYPES; fp8 stores the blocks' linear layers so and computes in the host's choice.
        vae_config: the VAE's `config.json`: the scale of its latents and, of our own, their colours for live previews.

    Raises:
        WeightsError: tensors and configuration do not fit each other.
    """
    if weight_dtype not in DTYPES:
        raise WeightsError(f"There is no weight_dtype '{weight_dtype}'; choose one of: {', '.join(DTYPES)}.")
    transformer = from_published(config, published, NativeTransformer)
    for block in transformer.transformer_blocks:
        block.attend, block.weights_of, block.borrow = host_attention, transformer.norm_weights, borrow
    for attention in transformer.layer_attention:
        attention.weights_of = transformer.norm_weights
    left = to_host_operators(transformer)
    if left:
        raise RuntimeError(f"modules without a host operator: {left}")
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    compute = _cast(transformer, DTYPES[weight_dtype], load_device)
    settings = FantasyIDConfig({})
    settings.latent_format = _latent_format(vae_config)
    settings.manual_cast_dtype = compute
    model = FantasyIDModel(settings, transformer, offload_device)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)
    patcher.add_wrapper_with_key(OUTER_SAMPLE, RUN, _around_run)
    return patcher


def _latent_format(vae_config: Mapping) -> CogVideoXLatents:
    latents = CogVideoXLatents()
    latents.scale_factor = vae_config.get("scaling_factor", latents.scale_factor)
    if "latent_rgb_factors" in vae_config:
        latents.latent_rgb_factors = vae_config["latent_rgb_factors"]
        latents.latent_rgb_factors_bias = vae_config.get("latent_rgb_factors_bias")
        with configured("CogVideoX VAE"):
            if torch.tensor(latents.latent_rgb_factors).shape != (latents.latent_channels, 3):
                raise ValueError("its latent_rgb_factors are not 16 rows of 3 numbers")
    return latents


def _cast(transformer: NativeTransformer, wanted: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """Store the weights as asked and say what to compute in (None: as stored), by the host's own rules."""
    own = transformer.proj_out.weight.dtype
    parameters = sum(p.numel() for p in transformer.parameters())
    fp8 = wanted == torch.float8_e4m3fn
    stored = comfy.model_management.unet_dtype(
        model_params=parameters, supported_dtypes=SUPPORTED, weight_dtype=own if fp8 or wanted is None else wanted
    )
    if wanted is not None and not fp8:
        stored = wanted
    compute = comfy.model_management.unet_manual_cast(stored, device, SUPPORTED)
    if fp8:
        blocks = [*transformer.transformer_blocks.modules(), *transformer.layer_attention.modules()]
        store_as([module.weight for module in blocks if isinstance(module, nn.Linear)], torch.float8_e4m3fn)
        compute = compute or stored
    store_as([x for x in transformer.state_dict(keep_vars=True).values() if x.dtype != torch.float8_e4m3fn], stored)
    return compute


def transformer_of(model: comfy.model_patcher.ModelPatcher) -> NativeTransformer:
    """The DiT behind a `MODEL`. Raises IdentityError for a model that is none of ours."""
    transformer = getattr(model.model, "diffusion_model", None)
    if not isinstance(transformer, FantasyIDTransformer):
        raise IdentityError(
            f"This MODEL is a {type(model.model).__name__}, which cannot take a FantasyID identity. "
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


def _around_run(executor, *args: Any, **kwargs: Any) -> Tensor:
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
