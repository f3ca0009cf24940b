"""A mesh that moves → what it does in each latent frame of a video."""

from dataclasses import replace

import torch
from torch import Tensor

from ..reconstruction.animation import Animation
from .config import FPS, TIME_SCALE


def per_latent_frame(animation: Animation, fps: float = FPS) -> Animation:
    """The animation with a frame for every latent frame of a video of so many frames per second.

    Expression and pose of a latent frame are the mean of those of the frames that the VAE makes it of, the first of one
    and each later one of four, as masks and landmarks are: it holds what happens in all four, and captured frames'
    noise goes with the square root. The last frame holds where it is not the last of four.
    """
    moving = animation.resampled(fps)
    held = -(len(moving.weights) - 1) % TIME_SCALE
    weights, pose = (
        per_latent(torch.cat([values, values[-1:].expand(held, -1)])) for values in (moving.weights, moving.pose)
    )
    return replace(moving, weights=weights, pose=pose, fps=fps / TIME_SCALE)


def per_latent(values: Tensor) -> Tensor:
    """Values per frame (4 T − 3, …) → their means per latent frame (T, …)."""
    return torch.cat([values[:1], values[1:].unflatten(0, (-1, TIME_SCALE)).mean(1)])
