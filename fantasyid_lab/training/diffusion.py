"""The diffusion loss that base and identity share: velocity prediction on the release's schedule."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.dit.transformer import FantasyIDTransformer
from fantasyid_core.sampling.schedule import RELEASE_SCHEDULE, TRAIN_STEPS, make_scheduler

FIXED_TIMESTEPS = (100, 300, 500, 700, 900)  # that validation looks at


class Noising:
    """Clean latents → noisy ones and the velocity to predict, at uniform times in 0…999."""

    def __init__(self, device: torch.device):
        cumulative = make_scheduler("ddim", RELEASE_SCHEDULE).alphas_cumprod.double()
        self.signal = cumulative.sqrt().float().to(device)
        self.noise = (1 - cumulative).sqrt().float().to(device)

    def __call__(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and noise (B, …) at times (B,) → noisy latents, velocity; float32."""
        shape = (-1, *[1] * (clean.ndim - 1))
        a, b = self.signal[timestep].view(shape), self.noise[timestep].view(shape)
        return a * clean + b * noise, a * noise - b * clean


def stratified_timesteps(count: int, generator: torch.Generator, high_noise_fraction: float = 0.5) -> Tensor:
    """(count,) times in 0…999, the share `high_noise_fraction` of them in the noisier half, uniform within halves.

    Stratified: one from each of `count` equal parts, which has less variance than independent draws.
    """
    parts = torch.arange(count, device=generator.device)
    parts = parts[torch.rand(count, generator=generator, device=generator.device).argsort()]
    places = (parts + torch.rand(count, generator=generator, device=generator.device)) / count
    low = 1 - high_noise_fraction
    in_high = 1 + (places - low) / max(high_noise_fraction, 1e-6)
    places = torch.where(places < low, places / max(low, 1e-6), in_high) / 2
    return (places * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)


def weighted_mse(error: Tensor, face_mask: Tensor, face_weight: float, sample_weights: Tensor | None = None) -> Tensor:
    """Mean square of (B, t, C, h, w), latents of the face (B, t, h, w) 0…1 counting `face_weight` times, and each
    sample as often as `sample_weights` (B,) says.
    """
    weight = 1 + (face_weight - 1) * face_mask[:, :, None]
    square = error.float().square() * weight / weight.mean()
    return square.mean() if sample_weights is None else (square.flatten(1).mean(1) * sample_weights).mean()


def loss_weights(losses: Sequence[float], power: float) -> Tensor:
    """Losses at `FIXED_TIMESTEPS` → (1000,) what samples of each time count, mean 1; power 0: all alike, 1: so that all
    times have the same part in the loss.

    At 0 what is left to learn at high noise, most of which nobody can foresee, drowns the rest (Karras et al. 2024,
    section 2.3 and appendix B.2); at 1 what is decided there, colours, counts little.
    """
    weight = np.interp(np.arange(TRAIN_STEPS), FIXED_TIMESTEPS, losses) ** -power
    return torch.from_numpy(weight / weight.mean()).float()


def on_pictures(step: int, share: float) -> bool:
    """Whether a step trains on single frames: that share of all steps, evenly spread."""
    return int((step + 1) * share) > int(step * share)


class Rotary:
    """Rotary positions by latent size, computed once."""

    def __init__(self, transformer: FantasyIDTransformer):
        self._transformer, self._cache = transformer, {}

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        key = (latents.shape[1], *latents.shape[-2:], latents.device)
        if key not in self._cache:
            self._cache[key] = self._transformer.rotary_embedding(*key[:3], latents.device)
        return self._cache[key]
