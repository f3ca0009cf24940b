"""CogVideoX's autoencoder as ComfyUI's VAE: the same numbers as diffusers' own, on the same small random weights."""

from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.sd
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from pack.fantasyid_core.errors import FantasyIDError, WeightsError, WeightsMissingError
from pack.nodes.host.vae import encode_sample, load_vae
from pack.tests.support.in_comfyui import difference
from safetensors.torch import save_file
from torch import Tensor

SEED = torch.Generator().manual_seed(0)
VIDEO = torch.rand(17, 32, 48, 3, generator=SEED)
LATENTS = torch.randn(1, 16, 5, 4, 6, generator=SEED)
LARGE, WIDE = torch.randn(1, 16, 3, 12, 20, generator=SEED), torch.randn(1, 16, 3, 40, 72, generator=SEED)
FRAMES = torch.rand(5, 64, 96, 3, generator=SEED)
WIDTHS = (8, 8, 16, 16)
GIB = 128 / WIDTHS[0] / 2**30  # of the published VAE, whose first block is 128 wide


@pytest.fixture(scope="module", autouse=True)
def as_nodes_are_run():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def theirs() -> AutoencoderKLCogVideoX:
    torch.manual_seed(0)  # which diffusers draws from
    return AutoencoderKLCogVideoX(
        block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=8, latent_channels=16, scaling_factor=0.7
    ).eval()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def vae(folder) -> comfy.sd.VAE:
    return load_vae(folder)


def distribution(model: AutoencoderKLCogVideoX, frames: Tensor):
    return model.encode(frames.movedim(-1, 0)[None] * 2 - 1).latent_dist


def pixels(model: AutoencoderKLCogVideoX, latents: Tensor) -> Tensor:
    return ((model.decode(latents).sample + 1) / 2).clamp(0, 1).movedim(1, -1)


def test_vae_is_comfyui_s_and_every_layer_is_its_operator(vae):
    assert isinstance(vae, comfy.sd.VAE)
    assert vae.first_stage_model.config.scaling_factor == 0.7
    for name, layer in vae.first_stage_model.named_modules():
        if list(layer.parameters(recurse=False)):
            assert isinstance(layer, comfy.ops.CastWeightBiasOp), name


def test_vae_computes_with_weights_of_another_type_than_its_input(folder, theirs):
    """Which comes out right only if every layer casts: so does a weight on another device."""
    stored = load_vae(folder)
    stored.first_stage_model.to(torch.bfloat16)
    rounded = AutoencoderKLCogVideoX.from_config(theirs.config).eval()
    rounded.load_state_dict({name: x.bfloat16().float() for name, x in theirs.state_dict().items()})
    assert difference(stored.decode(LATENTS), pixels(rounded, LATENTS)) < 1e-5


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_vae_encodes_to_the_mode_as_diffusers(vae, theirs, frames):
    assert difference(vae.encode(VIDEO[:frames]), distribution(theirs, VIDEO[:frames]).mode()) < 1e-5


@pytest.mark.parametrize("latents", [1, 3, 5])
def test_vae_decodes_as_diffusers(vae, theirs, latents):
    assert difference(vae.decode(LATENTS[:, :, :latents]), pixels(theirs, LATENTS[:, :, :latents])) < 1e-5


def test_vae_decodes_any_number_of_latents_to_four_frames_each_after_the_first(vae, theirs):
    for latents in range(1, 6):
        assert vae.decode(LATENTS[:, :, :latents]).shape[1] == 4 * latents - 3
    first_twice = torch.cat([LATENTS[:, :, :1], LATENTS[:, :, :4]], 2)
    assert difference(vae.decode(LATENTS[:, :, :4]), pixels(theirs, first_twice)[:, 4:]) < 1e-5


def test_vae_draws_the_release_s_sample_from_a_seed(vae, theirs):
    sample = distribution(theirs, VIDEO[:1]).sample(torch.Generator().manual_seed(7))
    assert difference(encode_sample(vae, VIDEO[:1], torch.Generator().manual_seed(7)), sample) < 1e-5


def test_vae_crops_what_makes_no_latent(vae):
    assert torch.equal(vae.encode(VIDEO[:16]), vae.encode(VIDEO[:13]))
    assert vae.encode(VIDEO[:1, :29, :45]).shape == (1, 16, 1, 3, 5)


def test_vae_works_in_tiles(vae):
    whole = vae.decode(LARGE)
    assert vae.decode_tiled(LARGE, tile_x=8, tile_y=8, overlap=2).shape == whole.shape
    assert vae.decode_tiled(LARGE, 16, 16, 4, tile_t=2, overlap_t=1).shape == whole.shape
    assert difference(vae.decode_tiled(LARGE, tile_x=32, tile_y=32, overlap=8), whole) < 1e-5, "of one tile"
    assert vae.encode_tiled(FRAMES, 32, 32, 8).shape == (1, 16, 2, 8, 12)
    assert difference(vae.encode_tiled(FRAMES, 256, 256, 64), vae.encode(FRAMES)) < 1e-5, "of one tile"


def test_vae_saved_by_comfyui_loads_as_a_single_file(vae, tmp_path):
    save_file(vae.get_sd(), tmp_path / "single.safetensors")
    single = load_vae(tmp_path / "single.safetensors")
    assert difference(single.encode(VIDEO[:5]), vae.encode(VIDEO[:5])) < 1e-5


def test_vae_asks_comfyui_for_the_memory_that_was_counted_and_measured(vae):
    decode = [vae.memory_used_decode((1, 16, t, 60, 90), torch.bfloat16) * GIB for t in (1, 5, 13)]
    assert decode == pytest.approx([1.15 * 3.3, 1.15 * 7.5, 1.15 * 7.5], rel=0.05)
    encode = [vae.memory_used_encode((1, 3, t, 480, 720), torch.bfloat16) * GIB for t in (1, 5, 9, 13, 49)]
    assert encode == pytest.approx([1.9, 4.2, 6.5, 8.9, 8.9], rel=0.05)  # 49 frames: 7.7 were measured


def test_vae_decodes_in_the_largest_tiles_that_free_memory_allows(vae, theirs, monkeypatch):
    decoded, decode = [], vae.first_stage_model.decode
    monkeypatch.setattr(
        vae.first_stage_model, "decode", lambda latents: decoded.append(tuple(latents.shape[2:])) or decode(latents)
    )
    right = pixels(theirs, WIDE)
    assert difference(vae.decode(WIDE), right) < 1e-5
    assert decoded == [(3, 40, 72)], "whole where it fits"

    decoded.clear()
    free = 0.7 * vae.memory_used_decode(WIDE.shape, vae.vae_dtype)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: free)
    assert 1e-5 < difference(vae.decode(WIDE), right) < 0.05
    assert set(decoded) == {(3, 40, 40)}

    bf16 = 2 / vae.vae_dtype.itemsize
    assert vae._tile((13, 60, 90), 0) == (32, 32), "the smallest"
    assert vae._tile((13, 60, 90), 8 / GIB / bf16) == (60, 49), "where 8 GiB are free"


def test_vae_errors_say_what_was_expected(tmp_path):
    with pytest.raises(FantasyIDError, match="connect the VAE output of 'FantasyID Load Model'"):
        encode_sample(object(), VIDEO[:1], None)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError):
        load_vae(tmp_path / "x.safetensors")
    with pytest.raises(WeightsMissingError):
        load_vae(tmp_path / "nowhere")
