"""The released sampling loop as a `SAMPLER`: the host loads, batches, previews and cancels, the core steps."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...fantasyid_core.sampling.schedule import (
    Trajectory,
    advance,
    begin,
    last_steps,
    to_variance_exploding,
    velocity_of,
)
from .run import Options, Run


class ReleaseSampler(comfy.samplers.Sampler):
    """diffusers' CogVideoX schedulers around the host's guided prediction.

    It can stop on the way, after `until` steps: it then gives the clean latents that are foreseen there, and the next
    call of the same guider goes on, to the latents that one call had made, bit by bit.

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
        self.until: int | None = None
        self._trajectory: Trajectory | None = None  # of a run that has stopped
        self._run: Run | None = None  # whose step cache goes on too

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

        run = Options.of(extra_args.get("model_options", {}).get("transformer_options", {})).run
        if self._trajectory is None:
            # the release's layout is (B, T, C, H, W): what its scheduler draws depends on it
            trajectory = begin(
                noise.transpose(1, 2),
                scheduler=self.scheduler,
                steps=self.steps,
                start=start,
                denoising_strength=strength,
            )
        else:
            trajectory = self._trajectory.to(noise.device)
            if run is not None and self._run is not None:
                run.go_on(self._run)
        trajectory = advance(trajectory, velocity, until=self.until, generator=self.generator, callback=report)
        if trajectory.clean is None or trajectory.done == len(trajectory.times):
            self._trajectory = self._run = None
            return trajectory.latents.transpose(1, 2)
        self._trajectory, self._run = trajectory.to("cpu"), run
        return trajectory.clean.transpose(1, 2)
