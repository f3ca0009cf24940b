"""What is measured: the released size (or a small one for smoke tests), with random weights and inputs.

Cost does not depend on the values of the weights, as long as they are not zeros.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fantasyid_core.dit.config import InjectionSizes, TransformerConfig
from fantasyid_core.dit.transformer import FantasyIDTransformer
from fantasyid_core.fusion.checkpoint import Published
from fantasyid_core.fusion.image_tower import TowerSizes
from fantasyid_core.fusion.mesh_hierarchy import Topology


@dataclass(frozen=True, eq=False)
class Workload:
    """One size of the model and of the video.

    Attributes:
        config: the transformer's `config.json`.
        latents: frames, height, width.
        tokens: identity tokens and their width.
        text: width of the text embeddings.
        vertices: of the levels of the mesh hierarchy.
        tower, abstractor, token_widths, reducer: sizes of the identity encoder, as in `nano.Sizes`.
        vae, text_encoder: their `config.json`.
        dtype: of the weights.
    """

    name: str
    config: Mapping[str, Any]
    latents: tuple[int, int, int]
    tokens: tuple[int, int]
    text: int
    vertices: tuple[int, int, int]
    tower: TowerSizes
    abstractor: Mapping[str, int]
    token_widths: tuple[int, ...]
    reducer: tuple[tuple[int, int, int], ...]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    dtype: torch.dtype

    @property
    def tower_width(self) -> int:
        return self.tower.width

    @property
    def video(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels."""
        frames, height, width = self.latents
        return 4 * frames - 3, 8 * height, 8 * width


def _config(heads: int, layers: int, text: int, latents: tuple[int, int, int]) -> dict:
    return {
        "num_attention_heads": heads,
        "attention_head_dim": 64,
        "in_channels": 32,
        "out_channels": 16,
        "num_layers": layers,
        "time_embed_dim": 512,
        "text_embed_dim": text,
        "sample_width": latents[2],
        "sample_height": latents[1],
        "sample_frames": 4 * latents[0] - 3,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
        "cross_attn_interval": 1,
        "layer_attention_head_dim": 128 if heads == 48 else 32,
    }


def _vae(channels: tuple[int, ...], layers: int, groups: int) -> dict:
    return {
        "down_block_types": ["CogVideoXDownBlock3D"] * 4,
        "up_block_types": ["CogVideoXUpBlock3D"] * 4,
        "block_out_channels": list(channels),
        "latent_channels": 16,
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "scaling_factor": 0.7,
    }


def _t5(width: int, hidden: int, layers: int, heads: int) -> dict:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": width,
        "d_kv": 64,
        "d_ff": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "vocab_size": 32128,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
    }


RELEASE = Workload(
    name="49 × 480 × 720, CogVideoX-5B",
    config=_config(48, 42, 4096, (13, 60, 90)),
    latents=(13, 60, 90),
    tokens=(115, 2048),
    text=4096,
    vertices=(5023, 1256, 314),
    tower=TowerSizes(width=1024, depth=24, grid=24, patch=14, head_dim=64, mlp=2730, out=768),
    abstractor={"width": 256, "depth": 3, "patches": 576, "queries": 36},
    token_widths=(2048, 1024, 512, 256, 128),
    reducer=((128, 256, 5), (256, 512, 5), (512, 1024, 3), (1024, 2048, 3)),
    vae=_vae((128, 256, 256, 512), 3, 32),
    text_encoder=_t5(4096, 10240, 24, 64),
    dtype=torch.bfloat16,
)
SMOKE = Workload(
    name="9 × 64 × 96, two small blocks",
    config=_config(2, 2, 64, (3, 8, 12)),
    latents=(3, 8, 12),
    tokens=(20, 64),
    text=64,
    vertices=(160, 40, 10),
    tower=TowerSizes(width=64, depth=6, grid=24, patch=14, head_dim=64, mlp=64, out=16),
    abstractor={"width": 16, "depth": 1, "patches": 576, "queries": 4},
    token_widths=(64, 16),
    reducer=((16, 32, 5), (32, 64, 3)),
    vae=_vae((8, 8, 8, 8), 1, 2),
    text_encoder=_t5(64, 64, 1, 1),
    dtype=torch.float32,
)

BLOCK_BYTES, LEAST = 0.32 * 2**30, 6 * 2**30  # of the released size: one DiT block with injection; all else


def fitting(free: int) -> Workload:
    """The released size with as many of its 42 blocks as `free` bytes on the card can hold beside what else it needs.

    The video's size stays, so a step's time grows with the blocks.
    """
    blocks = max(2, min(RELEASE.config["num_layers"], int((free - LEAST) / BLOCK_BYTES)))
    if blocks == RELEASE.config["num_layers"]:
        return RELEASE
    name = f"{RELEASE.name}, {blocks} of its 42 blocks, as the card is small"
    return replace(RELEASE, name=name, config={**RELEASE.config, "num_layers": blocks})


def transformer(work: Workload) -> FantasyIDTransformer:
    """The DiT with its injection layers, on the current default device."""
    config, token_dim = TransformerConfig.of(work.config), work.tokens[1]
    return FantasyIDTransformer(config, InjectionSizes(config.num_layers, token_dim, token_dim))


def random_published(work: Workload) -> Published:
    """Random DiT and injection layers in RAM, scaled so that activations stay near 1."""
    with torch.device("meta"):
        shapes = transformer(work).state_dict()
    state = {name: random_values(work, name, x) for name, x in shapes.items()}
    prefix = "layer_attention."
    return Published(
        dit={k: v for k, v in state.items() if not k.startswith(prefix)},
        face_abstractor={},
        vertex_spiral_net={},
        vertex_reducer={},
        layer_attention={k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
        dead={},
    )


def random_values(work: Workload, name: str, like: Tensor) -> Tensor:
    """A random tensor of the shape of `like`, always the same of this name.

    Drawing 6.5 billion values takes minutes, cutting them out of a pool takes seconds.
    """
    pool = _pool(1 << (26 if work.text > 1000 else 20), work.dtype)
    start = sum(map(ord, name)) % 4096
    repeats = (like.numel() + start) // len(pool) + 1
    x = pool.repeat(repeats)[start : start + like.numel()].view(like.shape).clone()
    if like.ndim > 1:
        return x / like[0].numel() ** 0.5
    return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x


@functools.lru_cache(maxsize=1)
def _pool(size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)


def random_topology(work: Workload) -> Topology:
    """A mesh hierarchy of the released sizes with random neighbours: only its cost is real."""
    counts = work.vertices
    template = torch.randn(counts[0], 3)
    downs, ups = [], []
    for fine, coarse in pairwise(counts):
        rows = torch.arange(coarse)
        downs.append((rows, torch.randperm(fine)[:coarse], torch.ones(coarse), (coarse, fine)))
        rows = torch.arange(fine).repeat_interleave(3)
        ups.append((rows, torch.randint(coarse, (3 * fine,)), torch.full((3 * fine,), 1 / 3), (fine, coarse)))
    spirals = tuple(torch.randint(n, (n, 9)) for n in counts[:2])
    faces = tuple(torch.randint(n, (2 * n, 3)) for n in counts)
    return Topology(counts, template, faces, tuple(downs), tuple(ups), spirals)


@dataclass(frozen=True)
class Inputs:
    """One denoising step's inputs: both guidance branches in one batch."""

    latents: Tensor  # (2, T, 32, H, W)
    text: Tensor  # (2, 226, D)
    timestep: Tensor  # (2,)
    tokens: Tensor  # (N, K)
    vertices: Tensor  # (1, V, 3)
    hidden_states: tuple[Tensor, ...]  # five of (1, 577, D)
    recognition: Tensor  # (1, 1280)


def random_inputs(work: Workload, device: torch.device | str, seed: int = 1) -> Inputs:
    """Standard normal inputs on `device`, in the workload's dtype."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, work.dtype)

    frames, height, width = work.latents
    return Inputs(
        latents=draw(2, frames, 32, height, width),
        text=draw(2, 226, work.text),
        timestep=torch.tensor([500, 500], device=device),
        tokens=draw(*work.tokens),
        vertices=torch.randn(1, work.vertices[0], 3, generator=generator).to(device),
        hidden_states=tuple(draw(1, 577, work.tower_width) for _ in range(5)),
        recognition=draw(1, 1280),
    )
