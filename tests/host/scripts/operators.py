"""Which layers become host operators, and that they compute what they computed before."""

import sys
from pathlib import Path

import host

host.start(Path(sys.argv[1]))

import comfy.ops  # noqa: E402
import torch  # noqa: E402
from pack.nodes.host.operators import to_host_operators  # noqa: E402
from torch import nn  # noqa: E402

torch.set_grad_enabled(False)
torch.manual_seed(0)


class ChannelNorm(nn.LayerNorm):
    """Adds to its base's forward, as the face abstractor's norm does."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class OwnNorm(nn.LayerNorm):
    """Replaces its base's forward: the host's cast would never be reached."""

    def forward(self, x):
        return nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))


LAYERS = {
    "Linear": (nn.Linear(4, 6), (2, 4)),
    "Conv1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 5)),
    "Conv2d": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "Conv3d": (nn.Conv3d(4, 6, 3, bias=False), (2, 4, 5, 5, 5)),
    "GroupNorm": (nn.GroupNorm(2, 4), (2, 4, 5)),
    "LayerNorm": (nn.LayerNorm(4), (2, 4)),
    "RMSNorm": (nn.RMSNorm(4), (2, 4)),
    "LayerNorm without weights": (nn.LayerNorm(4, elementwise_affine=False), (2, 4)),
    "ChannelNorm": (ChannelNorm(4), (2, 4, 5, 5)),
}
found: dict = {"differences": {}, "not operators": [], "lists are shared": False}
for name, (layer, shape) in LAYERS.items():
    for parameter in layer.parameters():
        parameter.data = torch.randn_like(parameter).bfloat16().float()
    x = torch.randn(shape)
    before = layer(x)
    names = list(layer.state_dict())
    left = to_host_operators(layer)
    if left or not isinstance(layer, comfy.ops.CastWeightBiasOp) or list(layer.state_dict()) != names:
        found["not operators"].append(name)
    found["lists are shared"] |= layer.weight_function is comfy.ops.CastWeightBiasOp.weight_function
    layer.to(torch.bfloat16)  # the host's operator casts its weights to its input's type
    found["differences"][name] = float((layer(x) - before).abs().max())

embedding = nn.Embedding(5, 3)
before = embedding(torch.arange(5))
to_host_operators(embedding)
found["differences"]["Embedding"] = float((embedding(torch.arange(5)) - before).abs().max())

mixed = nn.Sequential(nn.Linear(2, 2), OwnNorm(2), Scale(), nn.BatchNorm1d(2), nn.GELU())
found["left"] = to_host_operators(mixed)
found["again"] = to_host_operators(mixed)
host.report(**found)
