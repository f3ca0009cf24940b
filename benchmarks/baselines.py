"""What ours is measured against: diffusers' CogVideoX and ConsisID, and a step as FantasyID's release computes it."""

from collections.abc import Callable

import torch
from diffusers import ConsisIDTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn

from fantasyid_core.dit.injection import LayerAttention
from fantasyid_core.dit.transformer import from_published
from fantasyid_core.fusion.checkpoint import Published
from fantasyid_core.fusion.face_abstractor import FaceAbstractor
from fantasyid_core.fusion.spiral_net import VertexReducer, VertexSpiralNet
from fantasyid_lab import reference

from .workload import Inputs, Workload, random_topology

Step = Callable[[], Tensor]


def plain(work: Workload, published: Published, inputs: Inputs, device: str, compiled: bool = False) -> Step:
    """diffusers' CogVideoX without identity, with or without every block compiled."""
    with torch.device("meta"):
        model = reference.transformer(work.config)
    model.load_state_dict(published.dit, assign=True)
    model = model.to(device).eval()
    if compiled:
        for block in model.transformer_blocks:
            block.compile()
    rotary = _rotary(work, device)
    return lambda: model(inputs.latents, inputs.text, inputs.timestep, image_rotary_emb=rotary, return_dict=False)[0]


def consisid(work: Workload, published: Published, inputs: Inputs, device: str) -> Step:
    """diffusers' ConsisID at its own defaults of the face modules."""
    with torch.device(device):
        model = ConsisIDTransformer3DModel(**reference.arguments(work.config), is_train_face=True)
    model = model.to(work.dtype).eval()
    rotary = _rotary(work, device)
    hidden = [torch.randn(1, 577, 1024, device=device, dtype=work.dtype) for _ in range(5)]
    recognition = torch.randn(1, 1280, device=device, dtype=work.dtype)

    def step() -> Tensor:
        return model(
            inputs.latents,
            inputs.text,
            inputs.timestep,
            image_rotary_emb=rotary,
            id_cond=recognition,
            id_vit_hidden=hidden,
            return_dict=False,
        )[0]

    return step


def as_released(work: Workload, published: Published, inputs: Inputs, device: str) -> Step:
    """A step with the release's costs: the face branch, all keys and values and a float32 softmax, every time anew."""
    model = from_published(work.config, published).to(device)
    with torch.device("meta"):
        blocks = reference.transformer(work.config).transformer_blocks  # as in the release
    blocks.load_state_dict(model.transformer_blocks.state_dict(), assign=True)
    model.transformer_blocks = blocks.eval()
    branch = ReleasedFaceBranch(work).to(device).eval()
    rotary = _rotary(work, device)

    class Run:
        def __init__(self, tokens: Tensor):
            self.tokens = tokens

        def add_to(self, hidden: Tensor, layer: int, attention: LayerAttention, progress: float) -> Tensor:
            return hidden + _released_attention(attention, hidden, self.tokens)

    def step() -> Tensor:
        run = Run(branch(inputs).to(work.dtype).expand(2, -1, -1))
        return model(inputs.latents, inputs.text, inputs.timestep, image_rotary_emb=rotary, injector=run)

    return step


class ReleasedFaceBranch(nn.Module):
    """Ten abstractor layers, five mappings and the recognition branch, of which the release uses the last ones."""

    def __init__(self, work: Workload):
        super().__init__()
        width = work.tower_width
        sizes = {**work.abstractor, "output_dim": work.tokens[1]}
        self.layers = nn.ModuleList(FaceAbstractor(width, **sizes) for _ in range(10)).to(work.dtype)
        self.recognition = nn.Sequential(nn.Linear(1280, width), nn.LayerNorm(width), nn.Linear(width, 5 * width))
        self.recognition.to(work.dtype)
        self.spiral_net = VertexSpiralNet(random_topology(work), list(work.token_widths))
        self.reducer = VertexReducer(list(work.reducer)).to(work.dtype)

    def forward(self, inputs: Inputs) -> Tensor:
        self.recognition(inputs.recognition)
        for i, layer in enumerate(self.layers):
            face = layer(inputs.hidden_states[i // 2])
        vertex = self.reducer(self.spiral_net(inputs.vertices, face.float()).to(face.dtype))
        return torch.cat([face, vertex], 1)


def _released_attention(layer: LayerAttention, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Attention written out, softmax in float32."""
    q = layer.to_q(layer.norm2(hidden)).unflatten(2, (-1, layer.head_dim)).transpose(1, 2)
    k, v = layer.keys_values(tokens)
    scale = layer.head_dim**-0.25
    weight = ((q * scale) @ (k * scale).transpose(-1, -2)).float().softmax(-1).to(q.dtype)
    return layer.to_out((weight @ v).permute(0, 2, 1, 3).flatten(2))


def _rotary(work: Workload, device: str) -> tuple[Tensor, Tensor]:
    frames, height, width = work.latents
    grid = (height // 2, width // 2)
    return get_3d_rotary_pos_embed(64, ((0, 0), grid), grid, frames, device=device)
