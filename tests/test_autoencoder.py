"""The autoencoder from its configuration, and the colours of previews."""

import torch
from torch.nn.functional import interpolate

from fantasyid_core import autoencoder, standin


def test_it_is_built_from_what_it_knows_and_keeps_the_preview_colours():
    colours = {"latent_rgb_factors": [[0.1, 0.2, 0.3]] * 16, "latent_rgb_factors_bias": [0.0, 0.1, 0.2]}
    vae = autoencoder.build({**standin.VAE, **colours, "a newer entry": 1})
    assert vae.config.latent_rgb_factors == colours["latent_rgb_factors"]
    assert vae.config.latent_rgb_factors_bias == [0.0, 0.1, 0.2]
    assert "a newer entry" not in vae.config
    assert "latent_rgb_factors" not in autoencoder.build(standin.VAE).config


def test_preview_colours_are_the_linear_map_from_latents_to_mean_colours():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 3, 4, 5, generator=generator)
    factors, bias = torch.randn(16, 3, generator=generator) / 10, torch.tensor([0.1, -0.2, 0.3])
    colours = torch.einsum("bcthw,ck->bkthw", latents, factors) + bias[:, None, None, None]
    frames = interpolate(colours, scale_factor=(4, 8, 8))[:, :, 3:]  # 9 frames: the first latent is one of them
    found = autoencoder.preview_colours(latents, frames.permute(0, 2, 3, 4, 1) / 2 + 0.5)
    torch.testing.assert_close(torch.tensor(found["latent_rgb_factors"]), factors, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(found["latent_rgb_factors_bias"]), bias, atol=1e-4, rtol=0)
