"""The layers that our networks are built from in ComfyUI: the same numbers as PyTorch's, and ComfyUI's to manage."""

import sys
from pathlib import Path

import host

base, folder = Path(sys.argv[1]), Path(sys.argv[2])
host.start(base)

import comfy.ops  # noqa: E402
import torch  # noqa: E402
from pack.fantasyid_core.fusion.checkpoint import split_published  # noqa: E402
from pack.fantasyid_core.io.weights import read, read_config  # noqa: E402
from pack.nodes.host.encoder import NativeEncoder  # noqa: E402
from pack.nodes.host.model import load_model  # noqa: E402
from pack.nodes.host.operators import Operators  # noqa: E402
from pack.nodes.host.options import transformer_of  # noqa: E402
from torch import nn  # noqa: E402

torch.set_grad_enabled(False)
torch.manual_seed(0)
LAYERS = {
    "Linear": ((4, 6), {}, (2, 4)),
    "Conv1d": ((4, 6, 3), {"padding": 1}, (2, 4, 5)),
    "Conv2d": ((4, 4, 3), {"groups": 4}, (2, 4, 5, 5)),
    "Conv3d": ((4, 6, 3), {"bias": False}, (2, 4, 5, 5, 5)),
    "GroupNorm": ((2, 4), {}, (2, 4, 5)),
    "LayerNorm": ((4,), {"eps": 1e-3}, (2, 4)),
}
found: dict = {"differences": {}}
for name, (sizes, options, shape) in LAYERS.items():
    theirs, ours = getattr(nn, name)(*sizes, **options), getattr(Operators, name)(*sizes, **options)
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter).bfloat16().float()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape)
    found["differences"][name] = float((ours.to(torch.bfloat16)(x) - theirs(x)).abs().max())  # it casts its weights


def unmanaged(module: nn.Module) -> list[str]:
    """Classes of what holds parameters that ComfyUI's operators do not: these must move them where they use them."""
    return sorted(
        {
            type(layer).__name__
            for layer in module.modules()
            if next(layer.parameters(recurse=False), None) is not None
            and not isinstance(layer, comfy.ops.CastWeightBiasOp)
        }
    )


config = read_config(folder / "transformer")
encoder = NativeEncoder(config, folder / "transformer", [folder / "face_encoder"], [folder / "face_model"])
found["unmanaged"] = {
    "transformer": unmanaged(transformer_of(load_model(config, split_published(read(folder / "transformer"))))),
    "encoder": unmanaged(encoder.loaded().model),
}
host.report(**found)
