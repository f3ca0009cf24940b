"""CogVideoX's autoencoder as the host's VAE, compared with diffusers' own on the same small random weights."""

import sys
from pathlib import Path

import host

base = Path(sys.argv[1])
host.start(base)

import comfy.model_management as management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from diffusers import AutoencoderKLCogVideoX  # noqa: E402
from pack.fantasyid_core.errors import FantasyIDError  # noqa: E402
from pack.nodes.host.vae import encode_sample, load_vae  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

as_nodes_are_run = torch.inference_mode()
as_nodes_are_run.__enter__()
torch.manual_seed(0)
widths = (8, 8, 16, 16)
theirs = AutoencoderKLCogVideoX(
    block_out_channels=widths, layers_per_block=1, norm_num_groups=8, latent_channels=16, scaling_factor=0.7
).eval()
theirs.save_pretrained(base / "model" / "vae")
vae = load_vae(base / "model")
video = torch.rand(17, 32, 48, 3)
found: dict = {
    "is_host_vae": isinstance(vae, comfy.sd.VAE),
    "scaling_factor": vae.first_stage_model.config.scaling_factor,
}


def difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    if ours.shape != reference.shape:
        return float("inf")
    return float((ours - reference).norm() / reference.norm())


def their_input(frames: torch.Tensor) -> torch.Tensor:
    return frames.movedim(-1, 0)[None] * 2 - 1


def their_pixels(latents: torch.Tensor) -> torch.Tensor:
    return ((theirs.decode(latents).sample + 1) / 2).clamp(0, 1).movedim(1, -1)


found["encode"] = {
    t: difference(vae.encode(video[:t]), theirs.encode(their_input(video[:t])).latent_dist.mode())
    for t in (1, 5, 9, 17)
}
found["encode_uneven_is_cropped"] = difference(vae.encode(video[:16]), vae.encode(video[:13]))
latents = torch.randn(1, 16, 5, 4, 6)
found["decode"] = {t: difference(vae.decode(latents[:, :, :t]), their_pixels(latents[:, :, :t])) for t in (1, 3, 5)}
found["decoded_frames"] = {t: vae.decode(latents[:, :, :t]).shape[1] for t in (1, 2, 3, 4, 5)}
first_twice = torch.cat([latents[:, :, :1], latents[:, :, :4]], 2)
found["decode_even"] = difference(vae.decode(latents[:, :, :4]), their_pixels(first_twice)[:, 4:])

sample = theirs.encode(their_input(video[:1])).latent_dist.sample(torch.Generator().manual_seed(7))
found["sample"] = difference(encode_sample(vae, video[:1], torch.Generator().manual_seed(7)), sample)
found["odd_size"] = list(vae.encode(video[:1, :29, :45]).shape)

large = torch.randn(1, 16, 3, 12, 20)
whole = vae.decode(large)
tiled = vae.decode_tiled(large, tile_x=8, tile_y=8, overlap=2)
found["tiled_decode_shape"] = list(tiled.shape) == list(whole.shape)
found["tiled_in_time_shape"] = list(vae.decode_tiled(large, 16, 16, 4, tile_t=2, overlap_t=1).shape) == list(
    whole.shape
)
one_tile = vae.decode_tiled(large, tile_x=32, tile_y=32, overlap=8)
found["tiled_decode_of_one_tile"] = difference(one_tile, whole)
free, parts = management.get_free_memory, []
wide = torch.randn(1, 16, 3, 40, 72)
management.get_free_memory = lambda *_, **__: 0.7 * vae.memory_used_decode(wide.shape, vae.vae_dtype)
original = vae.first_stage_model.decode
vae.first_stage_model.decode = lambda latents: parts.append(tuple(latents.shape[2:])) or original(latents)
short = vae.decode(wide)
management.get_free_memory = free
found["decoded_whole_where_it_fits"] = [difference(vae.decode(wide), their_pixels(wide)), parts[-1]]
found["tiles_where_memory_is_short"] = sorted(set(parts[:-1]))
found["tiles_show_the_same"] = difference(short, their_pixels(wide))
found["smallest_tile"] = vae._tile((13, 60, 90), 0)
frames = torch.rand(5, 64, 96, 3)
found["tiled_encode_shape"] = list(vae.encode_tiled(frames, 32, 32, 8).shape)
found["tiled_encode_of_one_tile"] = difference(vae.encode_tiled(frames, 256, 256, 64), vae.encode(frames))

save_file(vae.get_sd(), base / "single.safetensors")
single = load_vae(base / "single.safetensors")
found["single_file"] = difference(single.encode(video[:5]), vae.encode(video[:5]))

found["layers_the_host_cannot_move"] = [
    name
    for name, layer in vae.first_stage_model.named_modules()
    if list(layer.parameters(recurse=False)) and not isinstance(layer, comfy.ops.CastWeightBiasOp)
]

# Weights of another type than the input's come out right only if every layer casts: so does a weight on another device.
stored = load_vae(base / "model")
stored.first_stage_model.to(torch.bfloat16)
theirs.to(torch.bfloat16).float()
found["decode_with_cast_weights"] = difference(stored.decode(latents), their_pixels(latents))

errors = {}
for name, action in {
    "another VAE": lambda: encode_sample(object(), video[:1], None),
    "not a VAE": lambda: (save_file({"x": torch.zeros(1)}, base / "x.safetensors"), load_vae(base / "x.safetensors")),
    "no VAE": lambda: load_vae(base / "nowhere"),
}.items():
    try:
        action()
    except FantasyIDError as error:
        errors[name] = f"{type(error).__name__}: {error}"
found["errors"] = errors
GIB = 128 / widths[0] / 2**30  # the published VAE's first block is 128 wide
found["decode_gib"] = [vae.memory_used_decode((1, 16, t, 60, 90), torch.bfloat16) * GIB for t in (1, 5, 13)]
found["encode_gib"] = [vae.memory_used_encode((1, 3, t, 480, 720), torch.bfloat16) * GIB for t in (1, 5, 9, 13, 49)]
bf16 = 2 / vae.vae_dtype.itemsize
found["tile_where_8_gib_are_free"] = vae._tile((13, 60, 90), 8 / GIB / bf16)
host.report(**found)
