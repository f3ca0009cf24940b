"""The released sampling loop as a `SAMPLER`: the host loads, batches, previews and cancels, the core steps."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...fantasyid_core.sampling.schedule import denoise, last_steps, to_variance_exploding, velocity_of


class ReleaseSampler(comfy.samplers.Sampler):
    """diffusers' CogVideoX schedulers around the host's guided prediction.

    Args:
        scheduler: "dpm" or "ddim".
        steps: denoising steps.
        generator: CPU generator that the DPM scheduler draws from.
        denoising_strength: which part of the run is done, the last, from the latents that the host gives, noised; None
            does all of it from the noise alone.
    """

    def __init__(self, scheduler: str, steps: int, generator: torch.Generator, denoising_strength: float | None = None):
        self.scheduler, self.steps, self.generator = scheduler, steps, generator
        self.denoising_strength = denoising_strength

    def sample(
        self,
        model_wrap,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Noise (B, C, T, H, W) → clean latents of the same shape, scaled as the model sees them."""
        start, strength = None, 1.0
        if self.denoising_strength is not None and latent_image is not None:
            start, strength = latent_image.transpose(1, 2), self.denoising_strength
        steps = last_steps(self.steps, strength)
        known = model_wrap.inner_model.model_sampling.sigmas

        def velocity(latents: Tensor, timestep: int) -> Tensor:
            sigma = known[timestep].to(latents)
            noisy = to_variance_exploding(latents, sigma).transpose(1, 2)
            clean = model_wrap(noisy, sigma.expand(len(noisy)), **extra_args)
            return velocity_of(noisy, clean, sigma).transpose(1, 2)

        def report(step: int, latents: Tensor, clean: Tensor) -> None:
            if callback is not None:
                callback(step, clean.transpose(1, 2), latents.transpose(1, 2), steps)

        # the release's layout is (B, T, C, H, W): what its scheduler draws depends on it
        latents = denoise(
            velocity,
            noise.transpose(1, 2),
            scheduler=self.scheduler,
            steps=self.steps,
            generator=self.generator,
            callback=report,
            start=start,
            denoising_strength=strength,
        )
        return latents.transpose(1, 2)
