"""CogVideoX's autoencoder from a `config.json`, and the colours in which live previews show its latents."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..optional_import import require_diffusers
from .latents import SPACE_SCALE, TIME_SCALE

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX

Autoencoder = Any  # diffusers' AutoencoderKLCogVideoX, whose attributes nn.Module hides from type checkers
PREVIEW = ("latent_rgb_factors", "latent_rgb_factors_bias")  # of our own in a `config.json`, under the host's names


def build(config: Mapping[str, Any]) -> "AutoencoderKLCogVideoX":
    """The autoencoder that a `config.json` describes, without its weights; of what it does not know, `PREVIEW` is kept.

    Raises:
        PackageMissingError: no diffusers. TypeError, ValueError, …: see `weights.configured`.
    """
    kind = require_diffusers("FantasyID's video VAE").AutoencoderKLCogVideoX
    from .autoencoder_block import make_lean

    known = inspect.signature(kind.__init__).parameters
    autoencoder = kind(**{name: value for name, value in config.items() if name in known})
    autoencoder.register_to_config(**{name: config[name] for name in PREVIEW if name in config})
    make_lean(autoencoder)
    return autoencoder


def decode(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """Latents (B, C, t, h, w), not scaled → pixels (B, 3, 4 t − 3, 8 h, 8 w) in −1…1, for any t.

    diffusers decodes two latents at a time and makes 4 t frames of an even number, all of them wrong by one: such a
    number is made odd by showing the first latent twice.
    """
    even = latents.shape[2] > 1 and latents.shape[2] % 2 == 0
    if even:
        latents = torch.cat([latents[:, :, :1], latents], 2)
    pixels = autoencoder.decode(latents, return_dict=False)[0]
    return pixels[:, :, TIME_SCALE:] if even else pixels


def preview_colours(latents: Tensor, frames: Tensor) -> dict[str, list]:
    """What to add to the autoencoder's `config.json`: the linear fit from a latent to the mean colour of its pixels.

    Args:
        latents: (B, C, t, h, w), scaled as the model sees them.
        frames: (B, 4 t − 3, 8 h, 8 w, 3) in 0…1, what they show.
    """
    pixels = frames.permute(0, 4, 1, 2, 3) * 2 - 1
    pixels = torch.cat([pixels[:, :, :1].expand(-1, -1, TIME_SCALE - 1, -1, -1), pixels], 2)  # the first has one frame
    means = F.avg_pool3d(pixels, (TIME_SCALE, SPACE_SCALE, SPACE_SCALE))
    rows = latents.movedim(1, -1).flatten(0, -2)
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    *factors, bias = torch.linalg.lstsq(rows, means.movedim(1, -1).flatten(0, -2)).solution.tolist()
    return dict(zip(PREVIEW, ([_rounded(row) for row in factors], _rounded(bias)), strict=True))


def _rounded(row: list[float]) -> list[float]:
    return [round(value, 4) for value in row]
