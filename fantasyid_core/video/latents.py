"""Frames and latents: sizes of a video, and the reference image as its first latent frame."""

import torch
from torch import Tensor

from ..dit.config import TIME_SCALE
from ..errors import SamplingError

FRAMES, HEIGHT, WIDTH = 49, 480, 720  # as released
SPACE_SCALE, LATENT_CHANNELS = 8, 16  # of CogVideoX's VAE


def latent_size(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Frames and pixels of a video → frames, height and width of its latents.

    Raises:
        SamplingError: no video of this size has latents (frames 4 k + 1, sides multiples of 16).
    """
    if frames < 1 or (frames - 1) % TIME_SCALE:
        near = max(1, (frames - 1) // TIME_SCALE * TIME_SCALE + 1)
        raise SamplingError(
            f"{frames} frames cannot be made: the number must be a multiple of 4 plus 1, such as {near} or "
            f"{near + TIME_SCALE} (49 as released). "
            "Set frames to one of these."
        )
    side = 2 * SPACE_SCALE  # the transformer takes patches of 2 × 2 latents
    if min(height, width) < side or height % side or width % side:
        raise SamplingError(
            f"{width} × {height} pixels cannot be made: both must be multiples of {side} (720 × 480 as released). "
            "Set width and height so."
        )
    return (frames - 1) // TIME_SCALE + 1, height // SPACE_SCALE, width // SPACE_SCALE


def squeeze_to_frame(image: Tensor, height: int, width: int) -> Tensor:
    """The reference crop (H, W, 3) in 0…1 squeezed, not cropped, to one frame (1, height, width, 3), as released.

    Lanczos on 8-bit values through Pillow, as diffusers' image processor does it.
    """
    import numpy as np
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(resized, np.float32) / 255)[None]


def first_frame_condition(first: Tensor, frames: int) -> Tensor:
    """Latents (B, C, 1, H, W) of the reference image → (B, C, frames, H, W): it, then zeros."""
    zeros = first.new_zeros(*first.shape[:2], frames - 1, *first.shape[3:])
    return torch.cat([first[:, :, :1], zeros], 2)
