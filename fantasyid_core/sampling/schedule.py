"""The released sampling recipe.

One loop for both schedulers; the velocity comes from a function, so that a caller can batch, stream or offload.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import SamplingError
from ..optional_import import require_diffusers

if TYPE_CHECKING:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

    Scheduler = CogVideoXDPMScheduler | CogVideoXDDIMScheduler

SCHEDULERS = ("dpm", "ddim")
TRAIN_STEPS = 1000
STEPS, GUIDANCE = 50, 6.0

# scheduler_config.json of the published folder
RELEASE_SCHEDULE = {
    "num_train_timesteps": TRAIN_STEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
}

Velocity = Callable[[Tensor, int], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]


def make_scheduler(name: str, config: Mapping = RELEASE_SCHEDULE) -> "Scheduler":
    """diffusers' CogVideoX scheduler `dpm` (as released) or `ddim`, from a published `scheduler_config.json`."""
    diffusers = require_diffusers("The sampling loop")
    classes = {"dpm": diffusers.CogVideoXDPMScheduler, "ddim": diffusers.CogVideoXDDIMScheduler}
    if name not in classes:
        raise SamplingError(f"There is no scheduler '{name}'; choose one of {', '.join(SCHEDULERS)}.")
    return classes[name].from_config(dict(config))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run of the sampling loop, before its first step or after some of them; `advance` goes on from there.

    Attributes:
        scheduler: "dpm" or "ddim".
        solver: diffusers' scheduler, set to the steps.
        times: the timesteps of all steps of the run, first to last.
        done: how many of these are done.
        latents: what those have made.
        clean: the clean latents that the last step predicted; None before the first.
    """

    scheduler: str
    solver: Any
    times: list[int]
    done: int
    latents: Tensor
    clean: Tensor | None

    def to(self, device: torch.device | str) -> "Trajectory":
        """The same with its latents on another device."""
        clean = None if self.clean is None else self.clean.to(device)
        return replace(self, latents=self.latents.to(device), clean=clean)


def begin(
    noise: Tensor,
    *,
    scheduler: str = "dpm",
    steps: int = STEPS,
    schedule: Mapping = RELEASE_SCHEDULE,
    start: Tensor | None = None,
    denoising_strength: float = 1.0,
) -> Trajectory:
    """A run of the sampling loop before its first step; arguments and errors as for `denoise`."""
    solver: Any = make_scheduler(scheduler, schedule)
    solver.set_timesteps(_checked(steps))
    times = solver.timesteps.tolist()
    times = times[len(times) - last_steps(len(times), denoising_strength) :]
    if start is None:
        latents = noise * solver.init_noise_sigma
    else:
        latents = solver.add_noise(start, noise, torch.tensor(times[:1], device=noise.device))
    return Trajectory(scheduler, solver, times, 0, latents, None)


def advance(
    run: Trajectory,
    velocity: Velocity,
    *,
    until: int | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Trajectory:
    """Do the steps of a run up to number `until` (None: all that are left). Two calls are one, bit by bit.

    Args:
        velocity, generator, callback: as for `denoise`; the generator in the state in which the last call left it.
    """
    latents, clean, times = run.latents, run.clean, run.times
    last = len(times) if until is None else min(until, len(times))
    for i in range(run.done, last):
        v = velocity(latents, times[i])
        if run.scheduler == "dpm":
            previous = times[i - 1] if i else None
            latents, clean = run.solver.step(
                v, clean, times[i], previous, latents, generator=generator, return_dict=False
            )
        else:
            latents, clean = run.solver.step(v, times[i], latents, return_dict=False)[:2]
        latents = latents.to(v.dtype)
        if callback is not None:
            callback(i, latents, clean)
    return replace(run, done=max(run.done, last), latents=latents, clean=clean)


def denoise(
    velocity: Velocity,
    latents: Tensor,
    *,
    scheduler: str = "dpm",
    steps: int = STEPS,
    generator: torch.Generator | None = None,
    schedule: Mapping = RELEASE_SCHEDULE,
    callback: Callback | None = None,
    start: Tensor | None = None,
    denoising_strength: float = 1.0,
) -> Tensor:
    """Run the sampling loop.

    Args:
        velocity: (latents, timestep 0…999) → predicted velocity after guidance, float32, the shape of `latents`.
        latents: the first noise, any shape; standard normal.
        generator: where the DPM scheduler draws its noise; DDIM draws none.
        callback: called after each step with (step index, latents, predicted clean latents).
        start: clean latents that are noised in part and denoised again; None begins with the noise alone.
        denoising_strength: which part of the run that is, above 0 … 1; that share of the steps, the last, is done.

    Returns:
        The clean latents, scaled as the model sees them.

    Raises:
        SamplingError: fewer than one step, more than there are timesteps, or a strength that is none.
    """
    run = begin(
        latents,
        scheduler=scheduler,
        steps=steps,
        schedule=schedule,
        start=start,
        denoising_strength=denoising_strength,
    )
    return advance(run, velocity, generator=generator, callback=callback).latents


def last_steps(steps: int, denoising_strength: float) -> int:
    """How many of a run's steps, the last ones, denoise by this strength.

    Raises:
        SamplingError: the strength does not lie above 0 and not above 1.
    """
    if not 0 < denoising_strength <= 1:
        raise SamplingError(
            f"The denoising strength must lie above 0 and not above 1; got {denoising_strength}. Set it so."
        )
    return max(1, round(denoising_strength * steps))


def guide(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022)."""
    return unconditional + scale * (conditional - unconditional)


def timesteps(steps: int, schedule: Mapping = RELEASE_SCHEDULE) -> list[int]:
    """The release's timesteps, first to last, each in 0…999."""
    solver = make_scheduler("ddim", schedule)
    solver.set_timesteps(_checked(steps))
    return solver.timesteps.tolist()


def _checked(steps: int) -> int:
    if not 1 <= steps <= TRAIN_STEPS:
        raise SamplingError(
            f"Steps must lie between 1 and {TRAIN_STEPS}; got {steps}. Set steps within that; 50 is as released."
        )
    return steps


def to_variance_exploding(latents: Tensor, sigma: Tensor) -> Tensor:
    """Latents as the release steps them (variance-preserving) → as k-diffusion's samplers do (variance-exploding)."""
    return latents * (sigma**2 + 1).sqrt()


def velocity_of(noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """The velocity behind a prediction of the clean latents from variance-exploding `noisy` ones."""
    return (noisy / (sigma**2 + 1) - clean) * (sigma**2 + 1).sqrt() / sigma
