"""What is measured: the released size (or a small one for smoke tests), with random weights and inputs.

Cost does not depend on the values of the weights, as long as they are not zeros.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fantasyid_core.topology import Topology
from fantasyid_core.transformer import FantasyIDTransformer, diffusers_arguments
from fantasyid_core.weights import Published


@dataclass(frozen=True)
class Workload:
    """One size of the model and of the video."""

    name: str
    config: dict
    latents: tuple[int, int, int]  # frames, height, width
    tokens: tuple[int, int]  # identity tokens and their width
    text: int
    vertices: tuple[int, int, int]
    tower_width: int
    dtype: torch.dtype


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


RELEASE = Workload(
    "49 × 480 × 720, CogVideoX-5B", _config(48, 42, 4096, (13, 60, 90)), (13, 60, 90), (115, 2048), 4096,
    (5023, 1256, 314), 1024, torch.bfloat16,
)  # fmt: skip
SMOKE = Workload(
    "9 × 64 × 96, two small blocks", _config(2, 2, 64, (3, 8, 12)), (3, 8, 12), (20, 64), 64,
    (160, 40, 10), 64, torch.float32,
)  # fmt: skip


def random_published(work: Workload, seed: int = 0) -> Published:
    """Random DiT and injection layers in RAM, scaled so that activations stay near 1."""
    with torch.device("meta"):
        model = FantasyIDTransformer(
            **diffusers_arguments(work.config),
            injections=work.config["num_layers"],
            token_dim=work.tokens[1],
            layer_attention_dim=work.tokens[1],
            layer_attention_head_dim=work.config["layer_attention_head_dim"],
        )
    pool = torch.randn(1 << 26 if work is RELEASE else 1 << 20, generator=torch.Generator().manual_seed(seed))
    pool = pool.to(work.dtype)
    state = {name: _values(pool, name, x) for name, x in model.state_dict().items()}
    prefix = "layer_attention."
    return Published(
        dit={k: v for k, v in state.items() if not k.startswith(prefix)},
        face_abstractor={},
        vertex_spiral_net={},
        vertex_reducer={},
        layer_attention={k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
        dead={},
    )


def _values(pool: Tensor, name: str, like: Tensor) -> Tensor:
    """Drawing 6.5 billion values takes minutes, cutting them out of a pool takes seconds."""
    start = sum(map(ord, name)) % 4096
    repeats = (like.numel() + start) // len(pool) + 1
    x = pool.repeat(repeats)[start : start + like.numel()].view(like.shape).clone()
    if like.ndim > 1:
        return x / like[0].numel() ** 0.5
    return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x


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
    return Topology(counts, template, (), tuple(downs), tuple(ups), spirals)


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
