"""The video DiT as a native `MODEL`: the host loads, streams, patches and samples it like one of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...fantasyid_core.dit.config import infer_config
from ...fantasyid_core.dit.transformer import build
from ...fantasyid_core.errors import IdentityError, SamplingError, WeightsError
from ...fantasyid_core.fusion.checkpoint import Published, split_published
from ...fantasyid_core.io.mmap import store_as
from ...fantasyid_core.io.weights import (
    configured,
    embedded_config,
    load_into,
    read_config,
    read_metadata,
    take_config,
    with_config,
)
from ...fantasyid_core.sampling.defaults import defaults_of
from ...fantasyid_core.sampling.schedule import RELEASE_SCHEDULE, TRAIN_STEPS
from ...fantasyid_core.video.latents import first_frame_condition
from .compat import make_patcher, named_formats, read_weights, remember_loader
from .dit import NativeTransformer, window_of
from .guidance import marked
from .lora import know_spellings, refuse_misfits
from .operators import Operators
from .options import OUTER_SAMPLE, around_run
from .quantised import load_quantised, operators_for
from .run import KEY

DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
SUPPORTED = [torch.bfloat16, torch.float16, torch.float32]
WHAT = "video transformer"
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


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
    latent_format: Any = CogVideoXLatents
    # 4.4 GiB for 49 × 480 × 720 with both guidance branches. On an H100 2.2 were measured, and 3.4 before blocks were
    # fused, which they are not on every machine.
    memory_usage_factor = 1.6


class FantasyIDModel(comfy.model_base.QwenImage):
    """The host's wrapper of the DiT. Only `isinstance` is wanted of its base class: the host maps LoRA names with the
    prefix `transformer.`, as diffusers and PEFT write them, for that class and a few others by name.
    """

    def __init__(
        self, config: FantasyIDConfig, transformer: NativeTransformer, device: torch.device | None, published: Mapping
    ):
        """published: the transformer's `config.json`, which goes into what ComfyUI saves."""
        config.unet_config["disable_unet_model_creation"] = True
        comfy.model_base.BaseModel.__init__(self, config, comfy.model_base.ModelType.V_PREDICTION, device=device)
        self.diffusion_model = transformer
        self.published_config = dict(published)

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As ComfyUI's, with the configuration that `read_model` finds: sizes that tensors do not tell."""
        return with_config(super().state_dict_for_saving(*args, **kwargs), self.published_config)

    extra_conds_shapes = comfy.model_base.BaseModel.extra_conds_shapes

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        return comfy.model_base.BaseModel.extra_conds(self, **kwargs) | marked(kwargs)

    def get_dtype(self) -> torch.dtype:
        return self.diffusion_model.proj_out.weight.dtype

    def _apply_model(self, x: Tensor, t: Tensor, c_concat: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """The host cuts noise into context windows, but not always the image latents: those of the same frames.

        Its own node may put the frame before a window in front of it.
        """
        transformer_options = kwargs.get("transformer_options") or (args[2] if len(args) > 2 else {})
        window = window_of(transformer_options)
        before = getattr(transformer_options.get("context_window"), "causal_anchor_index", None)
        if window is not None and before is not None and before >= 0:
            window = [before, *window]
            learned = self.diffusion_model.config.use_learned_positional_embeddings
            if learned and not self.diffusion_model.trained_at(*x.shape[2:]):
                raise SamplingError(
                    f"With causal_window_fix each context window is {x.shape[2]} latents long; this model has "
                    f"positions for {self.diffusion_model.trained_size}. Switch causal_window_fix off, take windows "
                    "that are one latent shorter, or use FantasyID Long Video in place of ComfyUI's context windows."
                )
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
        if image is None or not self.diffusion_model.config.first_frame_condition:
            return noise.new_zeros(noise.shape[0], channels, *noise.shape[2:])
        if image.shape[-2:] != noise.shape[-2:]:
            raise IdentityError(
                f"The image condition is {image.shape[-1] * 8} × {image.shape[-2] * 8} pixels, the video "
                f"{noise.shape[-1] * 8} × {noise.shape[-2] * 8}. Make both with the same width and height."
            )
        image = first_frame_condition(self.process_latent_in(image).to(kwargs["device"]), noise.shape[2])
        return comfy.utils.resize_to_batch_size(image, noise.shape[0])


def read_model(weights: Path, *others: Path) -> tuple[dict[str, Any], Published]:
    """Configuration and tensors of a transformer: a folder, or a single file, also one that ComfyUI saved.

    Args:
        others: folders whose `config.json` holds for a file that brings none; without one it is told from the tensors.

    Raises:
        WeightsMissingError, WeightsError: not there, damaged, or no such transformer.
    """
    tensors = named_formats(read_weights(weights), {} if weights.is_dir() else read_metadata(weights))
    carried = take_config(tensors)
    published = split_published(tensors)
    if weights.is_dir():
        return read_config(weights), published
    config = embedded_config(weights) or carried or next(map(read_config, others), None)
    return config or infer_config(published), published


def load_model(
    config: Mapping,
    published: Published,
    weight_dtype: str = "default",
    vae_config: Mapping = {},
    *,
    source: Path | None = None,
    dynamic: bool = True,
) -> comfy.model_patcher.ModelPatcher:
    """The published transformer as a host `MODEL`.

    Args:
        config: the transformer's `config.json`.
        weight_dtype: a key of DTYPES; fp8 stores the blocks' linear layers so and computes in the host's choice.
        vae_config: the VAE's `config.json`: the scale of its latents and, of our own, their colours for live previews.
        source: where `published` was read from, for whatever in ComfyUI wants a model of its own (Train LoRA).
        dynamic: False for weights that ComfyUI is to hold whole.

    Raises:
        WeightsError: tensors and configuration do not fit each other.
    """
    if weight_dtype not in DTYPES:
        raise WeightsError(f"There is no weight_dtype '{weight_dtype}'; choose one of: {', '.join(DTYPES)}.")
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    transformer, compute = _load(config, published, weight_dtype, load_device)
    with configured("FantasyID transformer"):
        transformer.defaults = defaults_of(config)
    settings = FantasyIDConfig({})
    settings.latent_format = _latent_format(vae_config)
    settings.manual_cast_dtype = compute
    model = FantasyIDModel(settings, transformer, offload_device, config)
    patcher = make_patcher(model, load_device, offload_device, dynamic)
    patcher.add_wrapper_with_key(OUTER_SAMPLE, KEY, around_run)
    know_spellings()
    refuse_misfits(patcher)
    if source is not None:
        remember_loader(patcher, _load_again, config, source, weight_dtype, vae_config)
    return patcher


def _load(
    config: Mapping, published: Published, weight_dtype: str, device: torch.device
) -> tuple[NativeTransformer, torch.dtype | None]:
    """The transformer with its weights, stored as asked, and what to compute in (None: as stored)."""
    if not published.is_quantised:
        transformer = build(config, published, NativeTransformer, Operators)
        load_into(transformer, published.transformer, what=WHAT)
        transformer.eval().requires_grad_(False)
        return transformer, _cast(transformer, DTYPES[weight_dtype], device)
    if DTYPES[weight_dtype] is not None:
        raise WeightsError(
            f"This transformer is quantised already: weight_dtype {weight_dtype} cannot change how it is stored. "
            "Set weight_dtype to default, or take the file in bf16 or fp16."
        )
    compute = comfy.model_management.unet_manual_cast(None, device, SUPPORTED)
    operators = operators_for(published.transformer, compute, device)
    transformer = build(config, published, NativeTransformer, operators)
    load_quantised(transformer, build(config, published), published.transformer, what=WHAT)
    return transformer, compute


def _load_again(
    config: Mapping, source: Path, weight_dtype: str, vae_config: Mapping, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    _, published = read_model(source)
    return load_model(config, published, weight_dtype, vae_config, source=source, dynamic=not disable_dynamic)


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
    """Store the weights as asked and say what to compute in (None: as stored), by the host's own rules.

    In 8 bits come the blocks' linear layers alone: nothing else is large, and norms and biases do not bear it.
    """
    own = transformer.proj_out.weight.dtype
    if wanted is None or wanted in FLOAT8:
        stored = comfy.model_management.unet_dtype(
            model_params=sum(p.numel() for p in transformer.parameters()),
            supported_dtypes=SUPPORTED,
            weight_dtype=torch.bfloat16 if own in FLOAT8 else own,
        )
        if stored in FLOAT8:  # the artist's --fp8_…-unet
            wanted, stored = wanted or stored, torch.bfloat16
    else:
        stored = wanted
    compute = comfy.model_management.unet_manual_cast(stored, device, SUPPORTED)
    blocks = [*transformer.transformer_blocks.modules(), *transformer.layer_attention.modules()]
    linears = [module.weight for module in blocks if isinstance(module, nn.Linear)]
    if wanted in FLOAT8:
        store_as(linears, wanted)
    narrow = {id(x) for x in linears if x.dtype in FLOAT8 and (wanted is None or wanted in FLOAT8)}
    store_as([x for x in transformer.state_dict(keep_vars=True).values() if id(x) not in narrow], stored)
    return compute or stored if narrow else compute
