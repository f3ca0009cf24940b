"""The autoencoder from its configuration, its lean blocks, and the colours of previews."""

import weakref

import pytest
import torch
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fantasyid_core.video import autoencoder, autoencoder_block
from fantasyid_lab import dummy_model

FULL = {
    "block_out_channels": (128, 256, 256, 512),
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "layers_per_block": 3,
    "latent_channels": 16,
}
SMALL = {**FULL, "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8}


def test_it_is_built_from_what_it_knows_and_keeps_the_preview_colours():
    colours = {"latent_rgb_factors": [[0.1, 0.2, 0.3]] * 16, "latent_rgb_factors_bias": [0.0, 0.1, 0.2]}
    vae = autoencoder.build({**dummy_model.VAE, **colours, "a newer entry": 1})
    assert vae.config.latent_rgb_factors == colours["latent_rgb_factors"]
    assert vae.config.latent_rgb_factors_bias == [0.0, 0.1, 0.2]
    written = {name: value for name, value in dummy_model.VAE.items() if not name.startswith("_")}
    assert vae.config.published().items() >= (written | colours).items()
    assert "latent_rgb_factors" not in autoencoder.build(dummy_model.VAE).config.published()


@pytest.mark.parametrize("change", [{"act_fn": "gelu"}, {"use_quant_conv": True}, {"down_block_types": ["Other"] * 4}])
def test_another_autoencoder_is_refused(change):
    with pytest.raises(ValueError, match="its "):
        autoencoder.build({**dummy_model.VAE, **change})


def test_preview_colours_are_the_linear_map_from_latents_to_mean_colours():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 3, 4, 5, generator=generator)
    factors, bias = torch.randn(16, 3, generator=generator) / 10, torch.tensor([0.1, -0.2, 0.3])
    colours = torch.einsum("bcthw,ck->bkthw", latents, factors) + bias[:, None, None, None]
    frames = interpolate(colours, scale_factor=(4, 8, 8))[:, :, 3:]  # 9 frames: the first latent is one of them
    found = autoencoder.preview_colours(latents, frames.permute(0, 2, 3, 4, 1) / 2 + 0.5)
    torch.testing.assert_close(torch.tensor(found["latent_rgb_factors"]), factors, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(found["latent_rgb_factors_bias"]), bias, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def plain_and_lean():
    """diffusers' own autoencoder and ours with the same random weights."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    plain, lean = AutoencoderKLCogVideoX(**SMALL).eval(), autoencoder.build(SMALL)
    assert list(lean.state_dict()) == list(plain.state_dict())
    lean.load_state_dict(plain.state_dict())
    return plain, lean


@pytest.mark.parametrize("at_once", [autoencoder_block.AT_ONCE, 512])
@pytest.mark.parametrize("latents", [1, 3, 5, 7])
@torch.no_grad()
def test_lean_blocks_decode_as_diffusers_does(plain_and_lean, latents, at_once, monkeypatch):
    monkeypatch.setattr(autoencoder_block, "AT_ONCE", at_once)
    z = torch.randn(2, 16, latents, 4, 6, generator=torch.Generator().manual_seed(latents))
    plain, lean = plain_and_lean
    torch.testing.assert_close(lean.decode(z), plain.decode(z).sample, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_of_an_even_number_the_first_latent_is_shown_twice(plain_and_lean):
    z = torch.randn(1, 16, 4, 4, 6, generator=torch.Generator().manual_seed(4))
    plain, lean = plain_and_lean
    theirs = plain.decode(torch.cat([z[:, :, :1], z], 2)).sample[:, :, 4:]
    torch.testing.assert_close(lean.decode(z), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [autoencoder_block.AT_ONCE, 512])
@pytest.mark.parametrize("frames", [1, 5, 8, 9, 17])
@torch.no_grad()
def test_lean_blocks_encode_as_diffusers_does(plain_and_lean, frames, at_once, monkeypatch):
    monkeypatch.setattr(autoencoder_block, "AT_ONCE", at_once)
    x = torch.rand(1, 3, frames, 32, 48, generator=torch.Generator().manual_seed(frames))
    plain, lean = plain_and_lean
    theirs, ours = plain.encode(x).latent_dist, lean.encode(x)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.std, theirs.std, rtol=1e-4, atol=1e-4)
    drawn = (posterior.sample(torch.Generator().manual_seed(7)) for posterior in (ours, theirs))
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-4)


def test_49_frames_at_full_size_need_less_than_half_of_diffusers_memory():
    """Counted on shapes alone: tensors alive at once, bf16, weights left out; a GPU's convolutions take some on top."""
    with torch.device("meta"):
        full = autoencoder.build(FULL).to(torch.bfloat16)
        latents, video = torch.empty(1, 16, 13, 60, 90), torch.empty(1, 3, 49, 480, 720)
    assert peak_gib(lambda: full.decode(latents.bfloat16())) < 7  # diffusers: 14.7
    assert peak_gib(lambda: full.encode(video.bfloat16()).mean) < 5.2  # diffusers: 6.2


def peak_gib(run) -> float:
    with torch.no_grad(), LivingTensors() as counted:
        run()
    return counted.peak / 2**30


class LivingTensors(TorchDispatchMode):
    """Bytes of all tensors made and not yet forgotten, at most."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, lambda tensor: self._count(tensor.untyped_storage()), out)
        self.peak = max(self.peak, self.now)
        return out

    def _count(self, storage) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
