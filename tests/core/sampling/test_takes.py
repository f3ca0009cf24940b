"""Several takes: when they are judged, what is looked at; and runs that stop and go on."""

import pytest
import torch

from fantasyid_core.sampling.schedule import advance, begin, denoise
from fantasyid_core.sampling.takes import glimpse, steps_until_judged


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
@pytest.mark.parametrize("until", [1, 3, 6])
def test_a_run_that_stopped_goes_on_as_if_it_had_not(scheduler: str, until: int):
    noise = torch.randn(1, 3, 16, 4, 6, generator=torch.Generator().manual_seed(0))

    def velocity(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        return 0.3 * latents + timestep / 1000

    whole = denoise(velocity, noise, scheduler=scheduler, steps=6, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    stopped = advance(begin(noise, scheduler=scheduler, steps=6), velocity, until=until, generator=generator)
    assert stopped.done == until
    assert stopped.clean is not None
    went_on = advance(stopped.to("cpu"), velocity, generator=generator)
    assert torch.equal(went_on.latents, whole)
    assert advance(went_on, velocity).latents is went_on.latents, "nothing is left to do"


@pytest.mark.parametrize(("steps", "share", "judged"), [(20, 0.3, 6), (50, 0.3, 15), (2, 0.05, 1), (20, 1.0, 20)])
def test_a_take_is_judged_after_a_share_of_its_steps(steps: int, share: float, judged: int):
    assert steps_until_judged(steps, share) == judged


def test_every_third_latent_frame_is_looked_at_by_itself():
    latents = torch.arange(7.0).expand(2, 16, 7).unflatten(2, (7, 1, 1)) + torch.tensor([0.0, 10.0]).view(2, 1, 1, 1, 1)
    seen = glimpse(latents)
    assert seen.shape == (6, 16, 1, 1, 1)
    assert seen[:, 0].flatten().tolist() == [0, 3, 6, 10, 13, 16]
