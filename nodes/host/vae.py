"""CogVideoX's autoencoder as the host's `VAE`: its memory, tiling, previews and saving are the host's."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor, nn

from ...fantasyid_core.dit.config import TIME_SCALE
from ...fantasyid_core.errors import SamplingError, WeightsError
from ...fantasyid_core.io import weights
from ...fantasyid_core.video.autoencoder import Autoencoder, Posterior, build
from ...fantasyid_core.video.latents import SPACE_SCALE
from .compat import free_memory, make_patcher, read_weights, remember_loader
from .operators import Operators

CHECKPOINT = "first_stage_model."  # beneath which a ComfyUI checkpoint holds its VAE
SMALLEST_TILE, OVERLAP = 32, 8  # latents; the host's own where memory has run out


def holds_vae(file: Path) -> bool:
    """Whether a file is a checkpoint of ComfyUI with a VAE in it."""
    return any(name.startswith(CHECKPOINT) for name in weights.read(file))


def load_vae(path: Path, dynamic: bool = True) -> comfy.sd.VAE:
    """Load from a model's folder (its `vae/`), from that folder itself or from a single file, a VAE or a checkpoint.

    Args:
        dynamic: False for weights that ComfyUI is to hold whole.

    Raises:
        WeightsMissingError, WeightsError: not there, damaged or of another autoencoder.
    """
    if (path / "vae").is_dir():
        path = path / "vae"
    tensors = read_weights(path)
    if any(name.startswith(CHECKPOINT) for name in tensors):
        parts = {name: tensor for name, tensor in tensors.items() if name.startswith(CHECKPOINT)}
        tensors = {name.removeprefix(CHECKPOINT): tensor for name, tensor in parts.items()}
    carried = weights.take_config(tensors)
    if path.is_dir():
        config = weights.read_config(path)
    else:
        config = weights.embedded_config(path) or carried or _infer_config(tensors, path)
    with weights.configured("CogVideoX VAE"), torch.device("meta"):
        autoencoder = build(config, Operators)
    weights.load_into(autoencoder, tensors, what="CogVideoX VAE")
    vae = CogVideoXVAE(autoencoder, dynamic=dynamic)
    remember_loader(vae.patcher, _load_patcher, path)
    return vae


def _load_patcher(path: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_vae(path, not disable_dynamic).patcher


def check_vae(vae: comfy.sd.VAE) -> None:
    """Raise SamplingError for another kind of VAE."""
    if not isinstance(vae, CogVideoXVAE):
        raise SamplingError("This VAE is not CogVideoX's: connect the VAE output of 'FantasyID Load Model'.")


def encode_sample(vae: comfy.sd.VAE, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw latents from the encoder's distribution, as the release does for its first frame (`VAE.encode`: its mode).

    Args:
        pixels: (T, H, W, 3) float 0…1, T = 1 or 4k + 1.
        generator: a CPU generator, for noise that does not depend on the device.

    Returns:
        (1, C, t, H/8, W/8) float32 on the host's intermediate device, not scaled.

    Raises:
        SamplingError: another kind of VAE.
    """
    check_vae(vae)
    pixels = vae.vae_encode_crop_pixels(pixels).movedim(-1, 0)[None]
    needed = vae.memory_used_encode(pixels.shape, vae.vae_dtype)
    management.load_models_gpu([vae.patcher], memory_required=needed)
    pixels = vae.process_input(pixels).to(device=vae.device, dtype=vae.vae_dtype)
    return vae.first_stage_model.posterior(pixels).sample(generator).to(vae.output_device).float()


class CogVideoXVAE(comfy.sd.VAE):
    """The host's VAE around CogVideoX's autoencoder, built from the host's layers and loaded."""

    def __init__(self, autoencoder: Autoencoder, dtype: torch.dtype | None = None, dynamic: bool = True):
        _init_without_weights(super())
        config = autoencoder.config
        space = 2 ** (len(config.block_out_channels) - 1)
        self.upscale_ratio = (lambda t: max(0, t * TIME_SCALE - (TIME_SCALE - 1)), space, space)
        self.downscale_ratio = (lambda t: max(0, (t + TIME_SCALE - 1) // TIME_SCALE), space, space)
        self.upscale_index_formula = self.downscale_index_formula = (TIME_SCALE, space, space)
        self.latent_channels, self.latent_dim, self.output_channels = config.latent_channels, 3, config.out_channels
        width = config.block_out_channels[0]
        self.memory_used_encode = lambda shape, dtype: _memory(ENCODE, width, shape[2:], dtype)
        self.memory_used_decode = lambda shape, dtype: _memory(
            DECODE, width, (self.upscale_ratio[0](shape[2]), shape[3] * space, shape[4] * space), dtype
        )
        self.device = management.vae_device()
        self.vae_dtype = dtype or management.vae_dtype(self.device, self.working_dtypes)
        self.output_device = management.intermediate_device()
        self.first_stage_model = _FirstStage(autoencoder).to(self.vae_dtype).eval().requires_grad_(False)
        self.patcher = make_patcher(self.first_stage_model, self.device, management.vae_offload_device(), dynamic)
        self.model_size()

    def decode(self, samples_in: Tensor, vae_options: Mapping = {}) -> Tensor:
        """Latents (B, C, t, h, w) → frames (B, T, H, W, 3) in 0…1, as the host's; what the card cannot hold, in tiles.

        The host goes over to tiles only once memory has run out. Some systems never say so and become slow instead.
        """
        t, h, w = samples_in.shape[2:]
        needed = self.memory_used_decode(samples_in.shape, self.vae_dtype)
        management.load_models_gpu([self.patcher], memory_required=needed)
        tile = self._tile((t, h, w), free_memory(self.patcher))
        if tile == (h, w):
            return super().decode(samples_in, vae_options)
        logging.info(
            "FantasyID: the VAE decodes in tiles of %d × %d pixels; free memory is short.",
            *(side * SPACE_SCALE for side in tile),
        )
        frames = self.decode_tiled_3d(samples_in, 999, *tile, overlap=(1, OVERLAP, OVERLAP))
        return frames.to(self.output_device).movedim(1, -1)

    def _tile(self, size: tuple[int, int, int], free: float) -> tuple[int, int]:
        """Height and width, in latents, of the largest part of (t, h, w) that decodes in `free` bytes."""
        frames, *tile = size
        while max(tile) > SMALLEST_TILE and self.memory_used_decode((1, 0, frames, *tile), self.vae_dtype) > free:
            larger = tile.index(max(tile))
            tile[larger] = max(SMALLEST_TILE, -(-(tile[larger] + OVERLAP) // 2))
        return tile[0], tile[1]

    def get_sd(self) -> dict[str, Tensor]:
        """State dict under diffusers' names: what `Save VAE` writes can be loaded again as a single file.

        With the configuration, since tensors do not tell the scale of the latents.
        """
        autoencoder = self.first_stage_model.autoencoder
        return weights.with_config(autoencoder.state_dict(), autoencoder.config.published())


class _FirstStage(nn.Module):
    """What the host calls: tensors in, tensors out, (B, C, T, H, W), pixels in -1…1, latents not scaled."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.autoencoder = autoencoder
        self.config = autoencoder.config

    def posterior(self, pixels: Tensor) -> Posterior:
        """The distribution of the latents."""
        frames = (pixels.shape[2] - 1) // TIME_SCALE * TIME_SCALE + 1  # what is left over makes no latent
        return self.autoencoder.encode(pixels[:, :, :frames])

    def encode(self, pixels: Tensor) -> Tensor:
        return self.posterior(pixels).mean

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, t, h, w) → (B, 3, 4t - 3, 8h, 8w)."""
        return self.autoencoder.decode(latents)


# Peak memory in units of (pixels × width of the first block): at once, for each frame, and how many frames count,
# since it works on some 8 at a time. At 480 × 720 in bf16 decoding 49 frames takes 7.5 GiB (on an H100; 6.8 by
# a count of tensors without values, the rest is what convolutions take for themselves). 15 % more are asked for: when
# it was 7.8, the host tried all at once where 8 were free, ran out of memory and went on in its smallest tiles, 10.9
# s instead of 4. 1 frame: 3.3 by count. Encoding, as measured on an H100 with diffusers' own blocks: 1, 5, 9, 13 and
# 49 frames 1.9, 4.2, 6.5, 8.9 and 7.7 GiB.
ENCODE, DECODE = (16, 7, 13), (41, 7, 9)


def _memory(values: tuple[int, int, int], width: int, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Bytes for a video of (T, H, W) pixels."""
    once, per_frame, most = values
    frames, *size = shape
    return (once + per_frame * min(frames, most)) * width * size[0] * size[1] * management.dtype_size(dtype)


def _init_without_weights(base: Any) -> None:
    """The host's own defaults, whatever attributes its version has, without its warning that there are no weights."""

    def quiet(record: logging.LogRecord) -> bool:
        return "No VAE weights" not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(quiet)
    try:
        base.__init__(sd={})
    finally:
        logger.removeFilter(quiet)


def _infer_config(tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Sizes from the tensors; the rest is as in CogVideoX-5B's `vae/config.json`."""
    try:
        blocks = {int(name.split(".")[2]) for name in tensors if name.startswith("encoder.down_blocks.")}
        widths = [tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.conv.weight"].shape[0] for i in range(len(blocks))]
        layers = {name.split(".")[4] for name in tensors if name.startswith("encoder.down_blocks.0.resnets.")}
        latents = tensors["decoder.conv_in.conv.weight"].shape[1]
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(
            f"{path} is no CogVideoX VAE under diffusers' names (looked for {error}). "
            "Choose the VAE of CogVideoX (vae/ of the published model)."
        ) from error
    return {
        "block_out_channels": widths,
        "down_block_types": ["CogVideoXDownBlock3D"] * len(widths),
        "up_block_types": ["CogVideoXUpBlock3D"] * len(widths),
        "layers_per_block": len(layers),
        "latent_channels": latents,
        "norm_num_groups": min(32, *widths),
        "scaling_factor": 0.7,
    }
