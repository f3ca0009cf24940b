"""The layers that our networks are built from in ComfyUI: the same numbers as PyTorch's, and ComfyUI's to manage."""

import comfy.ops
import pytest
import torch
from pack.fantasyid_core.io.weights import read_config
from pack.nodes.host.encoder import NativeEncoder
from pack.nodes.host.operators import Operators
from pack.nodes.host.options import transformer_of
from pack.tests.support.in_comfyui import load
from torch import nn


@pytest.mark.parametrize(
    ("name", "sizes", "options", "shape"),
    [
        ("Linear", (4, 6), {}, (2, 4)),
        ("Conv1d", (4, 6, 3), {"padding": 1}, (2, 4, 5)),
        ("Conv2d", (4, 4, 3), {"groups": 4}, (2, 4, 5, 5)),
        ("Conv3d", (4, 6, 3), {"bias": False}, (2, 4, 5, 5, 5)),
        ("GroupNorm", (2, 4), {}, (2, 4, 5)),
        ("LayerNorm", (4,), {"eps": 1e-3}, (2, 4)),
    ],
)
def test_operators_compute_the_same_from_weights_of_another_type(name, sizes, options, shape):
    """They cast their weights to their input's type."""
    generator = torch.Generator().manual_seed(0)
    theirs, ours = getattr(nn, name)(*sizes, **options), getattr(Operators, name)(*sizes, **options)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).bfloat16().float()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, generator=generator)
    assert (ours.to(torch.bfloat16)(x) - theirs(x)).abs().max() < 1e-5


def unmanaged(module: nn.Module) -> set[str]:
    """Classes of what holds parameters that ComfyUI's operators do not: these must move them where they use them."""
    layers = (layer for layer in module.modules() if list(layer.parameters(recurse=False)))
    return {type(layer).__name__ for layer in layers if not isinstance(layer, comfy.ops.CastWeightBiasOp)}


def test_all_weights_are_comfyui_s_to_manage_but_those_that_move_themselves(standin):
    assert unmanaged(transformer_of(load(standin))) == set()
    part = standin / "transformer"
    encoder = NativeEncoder(read_config(part), part, [standin / "face_encoder"], [standin / "face_model"])
    assert unmanaged(encoder.loaded().model) == {"Attention", "FaceAbstractor", "ImageTower", "VertexSpiralNet"}
