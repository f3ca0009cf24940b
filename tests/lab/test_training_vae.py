"""The autoencoder as it is trained equals diffusers' own; what its batches weigh."""

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")

from fantasyid_lab import fast_vae, latents, nano
from fantasyid_lab.training import vae as stage
from fantasyid_lab.training.run import STAGES
from fantasyid_lab.training.stage import Context
from fantasyid_lab.training.whitening import fold, whitening


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    model = nano.build(sizes=nano.TINY).vae.eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_a_video_s_latents_are_the_scaled_mean_in_either_type(vae: torch.nn.Module, dtype, tolerance: float):
    frames = torch.rand(3, 9, 32, 32, 3)
    mean = vae.encode((2 * frames - 1).movedim(-1, 1)).mean.transpose(1, 2)
    encoded = latents.encode(copy.deepcopy(vae).to(dtype), 255 * frames)
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, mean * vae.config.scaling_factor, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def reference(vae: torch.nn.Module) -> torch.nn.Module:
    """diffusers' own with the same weights."""
    from diffusers import AutoencoderKLCogVideoX

    model = AutoencoderKLCogVideoX.from_config(vae.config.published()).eval()
    model.load_state_dict(vae.state_dict())
    return model


@pytest.mark.parametrize("frames", [1, 5, 9, 17, 25])
@torch.no_grad()
def test_it_encodes_and_decodes_as_diffusers_does(vae: torch.nn.Module, reference: torch.nn.Module, frames: int):
    pixels = torch.rand(2, frames, 32, 48, 3) * 2 - 1
    posterior = reference.encode(pixels.permute(0, 4, 1, 2, 3)).latent_dist
    mean, spread = fast_vae.encode(vae, pixels)
    torch.testing.assert_close(mean, posterior.mean.permute(0, 2, 3, 4, 1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(spread, posterior.std.permute(0, 2, 3, 4, 1), atol=1e-4, rtol=1e-3)
    reconstructed = reference.decode(posterior.mean, return_dict=False)[0].permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(fast_vae.decode(vae, mean), reconstructed, atol=1e-4, rtol=1e-3)


def test_its_gradients_are_those_of_diffusers_modules(vae: torch.nn.Module, reference: torch.nn.Module):
    pixels = torch.rand(1, 9, 16, 16, 3) * 2 - 1
    reconstructed = fast_vae.decode(vae, fast_vae.encode(vae, pixels)[0])
    fast = torch.autograd.grad(reconstructed.square().mean(), list(vae.parameters()), allow_unused=True)
    latents = reference.encode(pixels.permute(0, 4, 1, 2, 3)).latent_dist.mean
    plain = reference.decode(latents, return_dict=False)[0]
    slow = torch.autograd.grad(plain.square().mean(), list(reference.parameters()), allow_unused=True)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_pixels_count_by_their_distance_to_eyes_brows_nose_and_mouth():
    landmarks = torch.full((1, 1, 68, 2), 200.0)  # outside, but for one of the jaw and one of an eye
    landmarks[0, 0, 21] = torch.tensor([9.5, 9.5])
    landmarks[0, 0, 40] = torch.tensor([21.5, 13.5])
    weight = stage.landmark_proximity(landmarks, 32)[0, 0]
    assert weight.shape == (8, 8)
    assert weight[3, 5] == weight.max() == pytest.approx(1.0)
    assert weight[2, 2] < 0.1
    assert weight[7, 0] < 1e-3


def test_windows_in_which_a_head_turns_come_more_often(context: Callable[..., Context]):
    """Of four windows the fastest turning one is taken, so one clip of four that turns is in 1 − ¾⁴ of the windows."""
    stage_context = context("vae", options={"turning_share": 1.0})
    pool, turned = stage_context.pool, torch.zeros_like(stage_context.pool.pose[: stage_context.pool.clips])
    every_fourth = torch.arange(len(turned)) % 4 == 0
    turned[every_fourth, :, 0] = torch.arange(pool.pose.shape[1]) * 5.0
    trained = STAGES["vae"](replace(stage_context, pool=SimpleNamespace(**vars(pool) | {"pose": turned, "clips": 4})))
    rows, times = trained._windows(2000, 5, torch.Generator().manual_seed(0))
    assert (rows == 0).float().mean().item() == pytest.approx(1 - 0.75**4, abs=0.03)
    assert (times.diff(dim=1) == 1).all()
    assert times.max() < pool.pose.shape[1]


def test_blur_costs_by_the_strength_of_edges():
    true = (torch.rand(1, 2, 17, 17, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    weight = torch.ones(1, 2, 17, 17, 1)
    blurred = torch.nn.functional.avg_pool2d(true[0].movedim(-1, 1), 3, 1, 1).movedim(1, -1)[None]
    distances = [stage.edge_distance(true.lerp(blurred, amount), true, weight).item() for amount in (0.0, 0.3, 0.6)]
    assert distances[0] == 0
    assert distances[0] < distances[1] < distances[2]
    shifted = true.roll(4, 3)  # the same strength elsewhere costs little
    assert stage.edge_distance(shifted[..., 4:, :], true[..., 4:, :], weight[..., 4:, :]) < distances[2]


@torch.no_grad()
def test_latents_are_whitened_by_the_autoencoders_own_weights(vae: torch.nn.Module):
    """Their covariance can be the identity then; the decoder's first layers see what they saw before."""
    folded, pixels = copy.deepcopy(vae), torch.rand(2, 9, 64, 64, 3) * 2 - 1
    before, spread = fast_vae.encode(vae, pixels)
    mean, matrix = whitening(before.movedim(-1, 2), power=1.0)
    fold(folded, mean, matrix, spread.mean((0, 1, 2, 3)))
    after, _ = fast_vae.encode(folded, pixels)
    torch.testing.assert_close(torch.cov(after.flatten(0, 3).T), torch.eye(16), atol=1e-2, rtol=0)
    torch.testing.assert_close(after, (before - mean) @ matrix.mT, atol=1e-3, rtol=1e-3)
    for name, conv in folded.decoder.named_modules():
        if name == "conv_in.conv" or name.endswith(("conv_y.conv", "conv_b.conv")):
            one, other = (
                m(z.permute(0, 4, 1, 2, 3)) for m, z in ((conv, after), (vae.decoder.get_submodule(name), before))
            )
            inner = (..., slice(1, -1), slice(1, -1))  # conv_in sees zeros beyond the border, which mean something else
            torch.testing.assert_close(one[inner], other[inner], atol=1e-4, rtol=1e-3)


def test_whitened_in_part_the_largest_directions_stay_the_largest():
    latents = torch.randn(4, 3, 16, 8, 8) * torch.logspace(-2, 0, 16)[:, None, None]
    mean, matrix = whitening(latents, power=0.5)
    deviations = ((latents.movedim(2, -1) - mean) @ matrix.mT).flatten(0, 3).std(0)
    assert deviations.square().mean() == pytest.approx(1.0, abs=1e-3)
    assert deviations[-1] / deviations[0] == pytest.approx(10, rel=0.1)


def test_the_tower_says_how_unlike_two_faces_are():
    model = nano.build(sizes=nano.TINY)
    weights = {"gradient_weight": 1.0, "kl_weight": 0.0, "likeness_weight": 1.0}
    objective = stage.Reconstruction(model.vae, model.encoder.tower.requires_grad_(False), weights)
    true = (torch.rand(2, 32, 32, 3) * 255).to(torch.uint8)
    places = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 2, indexing="xy"), -1).expand(2, -1, -1, -1)
    same = true.float() / 127.5 - 1
    assert objective._perceptual_distance(same, true, places) < 1e-4
    other = same.flip(0).requires_grad_()
    perceptual = objective._perceptual_distance(other, true, places)
    assert perceptual > 0.01
    perceptual.backward()
    assert other.grad.abs().max() > 0
