"""The released sampling loop as a `SAMPLER`: the host loads, batches, previews and cancels, the core steps."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...fantasyid_core.sampling.schedule import denoise, to_variance_exploding, velocity_of


class ReleaseSampler(comfy.samplers.Sampler):
    """diffusers' CogVideoX schedulers around the host's guided prediction.

    Args:
        scheduler: "dpm" or "ddim".
        steps: denoising steps.
        generator: CPU generator that the DPM scheduler draws from.
    """

    def __init__(self, scheduler: str, steps: int, generator: torch.Generator):
        self.scheduler, self.steps, self.generator = scheduler, steps, generator

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
        known = model_wrap.inner_model.model_sampling.sigmas

        def velocity(latents: Tensor, timestep: int) -> Tensor:
            sigma = known[timestep].to(latents)
            noisy = to_variance_exploding(latents, sigma).transpose(1, 2)
            clean = model_wrap(noisy, sigma.expand(len(noisy)), **extra_args)
            return velocity_of(noisy, clean, sigma).transpose(1, 2)

        def report(step: int, latents: Tensor, clean: Tensor) -> None:
            if callback is not None:
                callback(step, clean.transpose(1, 2), latents.transpose(1, 2), self.steps)

        # the release's layout is (B, T, C, H, W): what its scheduler draws depends on it
        latents = denoise(
            velocity,
            noise.transpose(1, 2),
            scheduler=self.scheduler,
            steps=self.steps,
            generator=self.generator,
            callback=report,
        )
        return latents.transpose(1, 2)
