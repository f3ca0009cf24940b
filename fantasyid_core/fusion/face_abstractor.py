"""Face abstractor: patch features of the image tower → the 2-D face tokens (paper, section 3.2).

The release stacks ten C-Abstractor layers over five hidden states and then returns the last layer's output alone.
What is built here is the part that reaches that output; `live_names` says which published tensors it needs.
"""

import re
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.weights import load_into
from ..operations import TORCH, Operations


class ConvNorm(nn.Module):
    """Bias-free convolution, then layer norm over the channels (timm: `ConvNormAct` without its activation)."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 1, groups: int = 1, operations: Operations = TORCH
    ):
        super().__init__()
        self.conv = operations.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = operations.LayerNorm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x).movedim(1, -1)).movedim(-1, 1)


class SqueezeExcite(nn.Module):
    """Channel gate from the spatial mean."""

    def __init__(self, channels: int, hidden: int, operations: Operations = TORCH):
        super().__init__()
        self.fc1 = operations.Conv2d(channels, hidden, 1)
        self.fc2 = operations.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class RegBlock(nn.Module):
    """RegNet-Y bottleneck with group size 1, SiLU and layer norms (timm: `Bottleneck`)."""

    def __init__(self, channels_in: int, channels: int, operations: Operations = TORCH):
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels, operations=operations)
        self.conv2 = ConvNorm(channels, channels, kernel=3, groups=channels, operations=operations)
        self.se = SqueezeExcite(channels, channels_in // 4, operations)
        self.conv3 = ConvNorm(channels, channels, operations=operations)
        self.downsample = nn.Identity()
        if channels_in != channels:
            self.downsample = ConvNorm(channels_in, channels, operations=operations)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.conv1(x))
        y = self.se(F.silu(self.conv2(y)))
        return F.silu(self.conv3(y) + self.downsample(x))


def _stage(channels_in: int, channels: int, depth: int, operations: Operations) -> nn.Sequential:
    blocks = [RegBlock(channels_in if i == 0 else channels, channels, operations) for i in range(depth)]
    return nn.Sequential(*blocks)


class FaceAbstractor(nn.Module):
    """Hidden state (B, 1 + G², D), class token first → face tokens (B, queries, K).

    Args:
        dim: D, width of the image tower's hidden states (release: 1024).
        width: channels of the RegNet stages (256).
        depth: blocks of each stage (3).
        patches: G², patch tokens of the image tower (576).
        queries: output tokens, a square number (36).
        output_dim: K (2048).
        operations: the layers that it is built from.
    """

    def __init__(
        self,
        dim: int = 1024,
        width: int = 256,
        depth: int = 3,
        patches: int = 576,
        queries: int = 36,
        output_dim: int = 2048,
        operations: Operations = TORCH,
    ):
        super().__init__()
        self.side = int(queries**0.5)
        linear, norm = operations.Linear, operations.LayerNorm
        self.mapping = nn.Sequential(
            *(linear(dim, dim), norm(dim), nn.LeakyReLU()),
            *(linear(dim, dim), norm(dim), nn.LeakyReLU()),
            linear(dim, dim),
        )
        self.pos_emb = nn.Parameter(torch.zeros(1, patches, dim))
        self.stage1 = _stage(dim, width, depth, operations)
        self.stage2 = _stage(width, width, depth, operations)
        self.readout = nn.Sequential(linear(width, dim), nn.SiLU(), linear(dim, dim))
        self.feed_forward = nn.Sequential(
            norm(dim), linear(dim, 4 * dim, bias=False), nn.GELU(), linear(4 * dim, dim, bias=False)
        )
        self.proj_out = nn.Parameter(torch.zeros(dim, output_dim))

    def forward(self, hidden_state: Tensor) -> Tensor:
        x = self.mapping(hidden_state)[:, 1:] + self.pos_emb.to(hidden_state)
        side = int(x.shape[1] ** 0.5)
        x = self.stage1(x.transpose(1, 2).unflatten(2, (side, side)))
        x = self.stage2(F.adaptive_avg_pool2d(x, self.side))
        x = self.readout(x.flatten(2).transpose(1, 2))
        return self.feed_forward(x) @ self.proj_out.to(x)

    @classmethod
    def from_published(
        cls, tensors: dict[str, Tensor], queries: int = 36, operations: Operations = TORCH
    ) -> "FaceAbstractor":
        """Build from the published tensors (names with or without dead ones, prefix `face_abstractor.` removed).

        Raises:
            WeightsError: a live tensor is missing or has another shape.
        """
        state = _rename(tensors)
        with torch.device("meta"):
            module = cls(
                dim=state["proj_out"].shape[0],
                width=state["readout.0.weight"].shape[1],
                depth=len({name.split(".")[1] for name in state if name.startswith("stage1.")}),
                patches=state["pos_emb"].shape[1],
                queries=queries,
                output_dim=state["proj_out"].shape[1],
                operations=operations,
            )
        load_into(module, state, what="face abstractor")
        return module.eval()


def live_names(names: list[str]) -> list[str]:
    """Those of the published abstractor's tensor names (prefix removed) that reach its output.

    The last layer and the last mapping; and, since every layer adds its position embedding to its input *in place*,
    the embeddings of the earlier layers that read the same hidden state (in the release: layer 8 before layer 9).
    """
    layers = sorted({int(name.split(".")[1]) for name in names if name.startswith("layers.")})
    mappings = sorted({int(m[1]) for name in names if (m := re.match(r"mapping_(\d+)\.", name))})
    shared = layers[-(len(layers) // len(mappings)) :]
    live = (
        r"proj_out"
        rf"|mapping_{mappings[-1]}\..*"
        rf"|layers\.{layers[-1]}\..*"
        rf"|layers\.({'|'.join(map(str, shared))})\.0\.pos_emb"
    )
    return [name for name in names if re.fullmatch(live, name)]


def _rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names → this module's; the position embeddings added to one input become their sum."""
    live = {name: tensors[name] for name in live_names(list(tensors))}
    embeddings = [name for name in live if name.endswith(".pos_emb")]
    positions = reduce(torch.add, [live.pop(name).float() for name in embeddings])
    state = {"pos_emb": positions.to(tensors[embeddings[0]].dtype)}
    for name, tensor in live.items():
        name = re.sub(r"^mapping_\d+\.", "mapping.", name)
        name = re.sub(r"^layers\.\d+\.1\.", "feed_forward.", name)
        name = re.sub(r"^layers\.\d+\.0\.readout\.", "readout.", name)
        name = re.sub(r"^layers\.\d+\.0\.net\.0\.b(\d+)\.", lambda m: f"stage1.{int(m[1]) - 1}.", name)
        name = re.sub(r"^layers\.\d+\.0\.net\.2\.b(\d+)\.", lambda m: f"stage2.{int(m[1]) - 1}.", name)
        state[name] = tensor
    return state


def published_name(name: str, layer: int = 0, mapping: int = 0) -> str:
    """The published name of one of this module's tensors, as layer `layer` that reads mapping `mapping`."""
    prefix, _, suffix = name.partition(".")
    if prefix == "proj_out":
        return name
    if prefix == "mapping":
        return f"mapping_{mapping}.{suffix}"
    if prefix == "feed_forward":
        return f"layers.{layer}.1.{suffix}"
    if prefix in ("stage1", "stage2"):
        block, _, suffix = suffix.partition(".")
        return f"layers.{layer}.0.net.{0 if prefix == 'stage1' else 2}.b{int(block) + 1}.{suffix}"
    return f"layers.{layer}.0.{name}"
