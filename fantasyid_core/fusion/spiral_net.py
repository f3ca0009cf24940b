"""Spiral vertex network and reducer: a face mesh and the 2-D face tokens → the 3-D tokens (paper, section 3.2).

One learned query per coarse vertex plus an encoding of its depth (of its place, where a model was trained so), mixed
with the face tokens by a small transformer, then decoded to the full mesh by spiral convolutions (SpiralNet++, Gong et
al. 2019) and reduced to a few tokens.
Attributes carry the names of the published checkpoint, so that its tensors load as they are.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MeshError, WeightsError
from ..io.weights import load_into
from ..operations import TORCH, Operations
from .mesh_hierarchy import Topology

AXES = "xyz"
HEADS = 4  # of every transformer layer; the release fixes it, so no tensor shape tells it


class Pool(nn.Module):
    """A sparse transform between two levels of a mesh hierarchy, as a gather: (B, columns, C) → (B, rows, C)."""

    index: Tensor
    weight: Tensor

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]):
        super().__init__()
        order = torch.argsort(rows, stable=True)
        rows, columns, values = rows[order], columns[order], values[order].float()
        counts = torch.bincount(rows, minlength=shape[0])
        slot = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        index = torch.zeros(shape[0], int(counts.max()), dtype=torch.long)
        weight = torch.zeros(index.shape)
        index[rows, slot], weight[rows, slot] = columns, values
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        index, weight = self.index.to(x.device), self.weight.to(x)
        return (x[:, index] * weight[..., None]).sum(2)


class SpiralConv(nn.Module):
    """Linear layer over each vertex's spiral of neighbours: (B, V, C) → (B, V, C)."""

    spirals: Tensor

    def __init__(self, channels: int, spirals: Tensor, operations: Operations = TORCH):
        super().__init__()
        self.layer = operations.Linear(channels * spirals.shape[1], channels)
        self.register_buffer("spirals", spirals, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, self.spirals.to(x.device)].flatten(2))


class SpiralDeblock(nn.Module):
    """To the next finer level, then a spiral convolution and ELU."""

    def __init__(self, channels: int, spirals: Tensor, up: Pool, operations: Operations = TORCH):
        super().__init__()
        self.up = up
        self.conv = SpiralConv(channels, spirals, operations)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(self.up(x)))


class SpiralDecoder(nn.Module):
    """Coarsest level used (B, V', C) → full mesh (B, V, C)."""

    def __init__(self, channels: int, topology: Topology, operations: Operations = TORCH):
        super().__init__()
        levels = reversed(range(len(topology.spirals)))
        blocks = [SpiralDeblock(channels, topology.spirals[i], Pool(*topology.up[i]), operations) for i in levels]
        self.de_layers = nn.Sequential(*blocks, SpiralConv(channels, topology.spirals[0], operations))

    def forward(self, x: Tensor) -> Tensor:
        return self.de_layers(x)


class PreNorm(nn.Module):
    """x + fn(norm(x))."""

    def __init__(self, dim: int, fn: nn.Module, operations: Operations = TORCH):
        super().__init__()
        self.norm = operations.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x)) + x


class SelfAttention(nn.Module):
    """Self-attention over (B, N, D)."""

    def __init__(self, dim: int, operations: Operations = TORCH):
        super().__init__()
        self.to_qkv = operations.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.ModuleList([operations.Linear(dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers, on every token by itself."""

    def __init__(self, dim: int, operations: Operations = TORCH):
        super().__init__()
        up, down = operations.Linear(dim, 2 * dim), operations.Linear(2 * dim, dim)
        self.net = nn.Sequential(up, nn.GELU(), nn.Identity(), down)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class FusionTransformer(nn.Module):
    """Pre-norm self-attention layers over 3-D queries and 2-D tokens together."""

    def __init__(self, dim: int, depth: int, operations: Operations = TORCH):
        super().__init__()
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    PreNorm(dim, SelfAttention(dim, operations), operations),
                    PreNorm(dim, FeedForward(dim, operations), operations),
                )
                for _ in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Mlp(nn.Module):
    """Linear layers from one token width to another."""

    def __init__(self, dim_in: int, dim_out: int, operations: Operations = TORCH):
        super().__init__()
        self.fc1 = operations.Linear(dim_in, dim_in)
        self.fc2 = operations.Linear(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VertexSpiralNet(nn.Module):
    """Vertices (B, V, 3) and face tokens (B, N, K) → vertex descriptor (B, V, C).

    Args:
        topology: the mesh hierarchy; spirals for every level but the one the queries live on.
        widths: token widths from K down to C (release: 2048, 1024, 512, 256, 128).
        depth: transformer layers (release: 6).
        depth_scale: a vertex's z in metres times this, plus 0.5, is the depth in 0…1 that is encoded (release: 0.5).
        axes: which coordinates are encoded like that, some of "xyz" (release: "z").
        operations: the layers that it is built from.
    """

    def __init__(
        self,
        topology: Topology,
        widths: list[int],
        depth: int = 6,
        depth_scale: float = 0.5,
        operations: Operations = TORCH,
        axes: str = "z",
    ):
        super().__init__()
        self.depth_scale, self.axes = depth_scale, checked_axes(axes)
        dim, levels = widths[-1], len(topology.spirals)
        self.vertex_count = len(topology.template)
        pools = [Pool(*topology.down[i]) for i in range(levels)]
        self.down = nn.Sequential(*pools)
        self.vtx_query = nn.Parameter(torch.zeros(1, len(pools[-1].index), dim))
        self.hw_down = nn.Sequential(*(Mlp(a, b, operations) for a, b in pairwise(widths)))
        self.transformer = FusionTransformer(dim, depth, operations)
        self.vtx_upsampler = SpiralDecoder(dim, topology, operations)
        self.vtx_descriptor_head = nn.Sequential(operations.Linear(dim, dim))

    def forward(self, vertices: Tensor, face_tokens: Tensor) -> Tensor:
        if vertices.shape[-2:] != (self.vertex_count, 3):
            raise MeshError(
                f"The mesh has {vertices.shape[-2]} vertices, but this model was trained on a mesh of "
                f"{self.vertex_count}. Use a mesh of that topology (FLAME has 5023 vertices)."
            )
        queries, dim = self.vtx_query.shape[1:]
        coarse = self.down(vertices)
        places = self.depth_scale * torch.stack([coarse[..., AXES.index(axis)] for axis in self.axes], -1) + 0.5
        x = self.vtx_query.to(places) + place_encoding(places, dim)
        x = self.transformer(torch.cat([x, self.hw_down(face_tokens)], 1))
        return self.vtx_descriptor_head(self.vtx_upsampler(x[:, :queries]))

    @classmethod
    def from_published(
        cls,
        tensors: dict[str, Tensor],
        topology: Topology,
        depth_scale: float = 0.5,
        operations: Operations = TORCH,
        axes: str = "z",
    ) -> "VertexSpiralNet":
        """Build from the published tensors (prefix `vertex_spiral_net.` removed) on a mesh hierarchy.

        Raises:
            WeightsError: a tensor is missing, or the hierarchy is not the one that the weights were trained on.
        """
        steps = len({name.split(".")[1] for name in tensors if name.startswith("hw_down.")})
        widths = [tensors[f"hw_down.{i}.fc1.weight"].shape[1] for i in range(steps)] + [tensors["vtx_query"].shape[2]]
        depth = len({name.split(".")[2] for name in tensors if name.startswith("transformer.layers.")})
        module = cls(topology, widths, depth, depth_scale, operations, axes)
        load_into(module, tensors, what="spiral network")
        return module.eval()


class ConvBlock(nn.Module):
    """1-D convolution, group norm, Mish."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, operations: Operations = TORCH):
        super().__init__()
        self.conv1d = operations.Conv1d(channels_in, channels_out, kernel, stride, padding=kernel // 2)
        self.group_norm = operations.GroupNorm(8, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(self.group_norm(self.conv1d(x)))


class ResConv1D(nn.Module):
    """Residual block that shortens the sequence: by 4 with kernel 5, by 2 with kernel 3."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, operations: Operations = TORCH):
        super().__init__()
        stride = kernel - 1
        self.conv_in = ConvBlock(channels_in, channels_out, kernel, stride, operations)
        self.conv_out = ConvBlock(channels_out, channels_out, 3, 1, operations)
        self.residual_conv = operations.Conv1d(channels_in, channels_out, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv_in(x)) + self.residual_conv(x)


class VertexReducer(nn.Module):
    """Vertex descriptor (B, V, C) → vertex tokens (B, ⌈V / 64⌉, K).

    Args:
        shapes: (channels in, channels out, kernel) of each block.
    """

    def __init__(self, shapes: list[tuple[int, int, int]], operations: Operations = TORCH):
        super().__init__()
        for i, shape in enumerate(shapes, start=1):
            self.add_module(f"conv_block{i}", ResConv1D(*shape, operations))

    def forward(self, descriptor: Tensor) -> Tensor:
        x = descriptor.transpose(1, 2)
        for block in self.children():
            x = block(x)
        return x.transpose(1, 2)

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor], operations: Operations = TORCH) -> "VertexReducer":
        """Build from the published tensors (prefix `vertex_reducer.` removed); WeightsError where they do not fit."""
        blocks = sorted({name.split(".")[0] for name in tensors})
        shapes = [tensors[f"{block}.conv_in.conv1d.weight"].shape for block in blocks]
        with torch.device("meta"):
            module = cls([(c_in, c_out, kernel) for c_out, c_in, kernel in shapes], operations)
        load_into(module, tensors, what="vertex reducer")
        return module.eval()


def checked_axes(axes: str) -> str:
    """Coordinates of vertices that are encoded. Raises WeightsError where they are none."""
    if not (axes and set(axes) <= set(AXES) and len(set(axes)) == len(axes)):
        raise WeightsError(
            f"'vertex_axes' of the transformer's config.json must name some of x, y and z, such as \"z\"; got "
            f"'{axes}'. Copy the model's config.json again."
        )
    return axes


def place_encoding(places: Tensor, dim: int) -> Tensor:
    """Sinusoidal encodings of coordinates in 0…1 side by side: (B, V, A) → (B, V, dim); what is left over is 0."""
    share = dim // places.shape[2] // 2 * 2
    encoded = torch.cat([depth_encoding(place, share) for place in places.split(1, 2)], 2)
    return F.pad(encoded, (0, dim - encoded.shape[2]))


def depth_encoding(depth: Tensor, dim: int) -> Tensor:
    """Sinusoidal encoding of a depth in 0…1: (B, V, 1) → (B, V, dim); sines at even, cosines at odd places."""
    step = torch.arange(dim // 2, device=depth.device, dtype=depth.dtype)
    angle = depth * (2 * math.pi) / 10000 ** (2 * step / dim)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
