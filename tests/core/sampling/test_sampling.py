"""The sampling loop on a model with a known answer, and the change of variables for the host."""

import pytest
import torch

from fantasyid_core.errors import SamplingError
from fantasyid_core.sampling.schedule import (
    RELEASE_SCHEDULE,
    denoise,
    guide,
    make_scheduler,
    timesteps,
    to_variance_exploding,
    velocity_of,
)


def towards(target: torch.Tensor):
    """The velocity of a perfect model whose data is one point."""
    alphas = make_scheduler("ddim").alphas_cumprod

    def velocity(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        alpha = alphas[timestep]
        noise = (latents - alpha.sqrt() * target) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * target

    return velocity


@pytest.fixture
def target() -> torch.Tensor:
    return torch.randn(1, 3, 16, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
@pytest.mark.parametrize("steps", [2, 8, 50])  # of others diffusers' last step stops short of 0, as released
def test_a_perfect_model_is_followed_to_its_data(scheduler, steps, target):
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    result = denoise(
        towards(target), noise, scheduler=scheduler, steps=steps, generator=torch.Generator().manual_seed(2)
    )
    torch.testing.assert_close(result, target, atol=2e-3, rtol=1e-3)


def test_the_callback_sees_every_step_and_the_clean_prediction(target):
    steps = []
    denoise(
        towards(target),
        torch.randn_like(target),
        scheduler="ddim",
        steps=5,
        callback=lambda step, latents, clean: steps.append((step, clean)),
    )
    assert [step for step, _ in steps] == [0, 1, 2, 3, 4]
    torch.testing.assert_close(steps[2][1], target, atol=1e-3, rtol=1e-3)


def test_the_same_seed_gives_the_same_latents(target):
    def run(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return denoise(lambda x, t: 0.3 * x, target, steps=4, generator=generator)

    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))


def test_timesteps_trail_and_start_at_the_last():
    assert timesteps(50)[0] == 999
    assert timesteps(50)[-1] == 19
    assert timesteps(1) == [999]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps, target):
    with pytest.raises(SamplingError, match="Steps"):
        denoise(towards(target), target, steps=steps)


def test_an_unknown_scheduler_is_refused(target):
    with pytest.raises(SamplingError, match="dpm, ddim"):
        denoise(towards(target), target, scheduler="euler")


def test_guidance_extrapolates():
    assert guide(torch.tensor(1.0), torch.tensor(2.0), 6.0) == 7.0


@pytest.mark.parametrize("timestep", [19, 500, 979, 999])
def test_velocity_comes_back_from_the_hosts_clean_prediction(timestep, target):
    alpha = make_scheduler("ddim", RELEASE_SCHEDULE).alphas_cumprod[timestep].clamp(min=4.9e-8)
    sigma = ((1 - alpha) / alpha).sqrt()
    latents, velocity = torch.randn_like(target), torch.randn_like(target)
    noisy = to_variance_exploding(latents, sigma)
    clean = noisy / (sigma**2 + 1) - velocity * sigma / (sigma**2 + 1).sqrt()  # the host's v-prediction
    torch.testing.assert_close(velocity_of(noisy, clean, sigma), velocity, atol=1e-4, rtol=1e-4)
