"""Videos → latents → videos, many at a time, as training and evaluation encode them."""

import torch
from torch import Tensor, nn

from . import fast_vae

ENCODED_FRAMES = 400  # together: one part starts some 330 kernels, however few the frames


def to_model(frames: Tensor) -> Tensor:
    """Frames in 0…255 → float in −1…1."""
    return frames.float() / 127.5 - 1


def to_frames(pixels: Tensor) -> Tensor:
    """Pixels in −1…1 → frames float 0…1."""
    return ((pixels.float() + 1) / 2).clamp(0, 1)


def encode(vae: nn.Module, frames: Tensor) -> Tensor:
    """Frames (B, T, H, W, 3) in 0…255, T = 4 t − 3 → scaled latents (B, t, 16, h, w) float32: the posterior's mean.

    On the autoencoder's device, in its type or that of autocast.
    """
    batch, like = max(1, ENCODED_FRAMES // frames.shape[1]), next(vae.parameters())
    parts = [fast_vae.encode(vae, to_model(part.to(like.device)).to(like.dtype))[0] for part in frames.split(batch)]
    return torch.cat(parts).float().movedim(-1, 2) * vae.config.scaling_factor


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Scaled latents (B, t, 16, h, w) → frames (B, T, H, W, 3) float 0…1."""
    latents = latents.movedim(2, -1) / vae.config.scaling_factor
    return torch.cat([to_frames(fast_vae.decode(vae, part)) for part in latents.split(4)])
