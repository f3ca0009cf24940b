"""The autoencoder as it is trained equals diffusers' own; what its batches weigh."""

import pytest
import torch

pytest.importorskip("diffusers")

from fantasyid_core import nano
from fantasyid_core.training import fast_vae
from fantasyid_core.training import vae as stage


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    model = nano.build(sizes=nano.TINY).vae.eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("frames", [1, 5, 9, 17, 25])
@torch.no_grad()
def test_it_encodes_and_decodes_as_diffusers_does(vae: torch.nn.Module, frames: int):
    pixels = torch.rand(2, frames, 32, 48, 3) * 2 - 1
    posterior = vae.encode(pixels.permute(0, 4, 1, 2, 3)).latent_dist
    mean, spread = fast_vae.encode(vae, pixels)
    torch.testing.assert_close(mean, posterior.mean.permute(0, 2, 3, 4, 1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(spread, posterior.std.permute(0, 2, 3, 4, 1), atol=1e-4, rtol=1e-3)
    made = vae.decode(posterior.mean, return_dict=False)[0].permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(fast_vae.decode(vae, mean), made, atol=1e-4, rtol=1e-3)


def test_its_gradients_are_those_of_diffusers_modules(vae: torch.nn.Module):
    pixels = torch.rand(1, 9, 16, 16, 3) * 2 - 1
    made = fast_vae.decode(vae, fast_vae.encode(vae, pixels)[0])
    fast = torch.autograd.grad(made.square().mean(), list(vae.parameters()), allow_unused=True)
    plain = vae.decode(vae.encode(pixels.permute(0, 4, 1, 2, 3)).latent_dist.mean, return_dict=False)[0]
    slow = torch.autograd.grad(plain.square().mean(), list(vae.parameters()), allow_unused=True)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_pixels_count_by_their_distance_to_eyes_brows_nose_and_mouth():
    landmarks = torch.full((1, 1, 68, 2), 200.0)  # outside, but for one of the outline and one of an eye
    landmarks[0, 0, 3] = torch.tensor([9.5, 9.5])
    landmarks[0, 0, 40] = torch.tensor([21.5, 13.5])
    weight = stage.near(landmarks, 32)[0, 0]
    assert weight.shape == (8, 8)
    assert weight[3, 5] == weight.max() == pytest.approx(1.0)
    assert weight[2, 2] < 0.1
    assert weight[7, 0] < 1e-3
