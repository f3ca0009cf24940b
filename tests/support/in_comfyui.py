"""For tests inside ComfyUI, which import it as `pack.tests.support.in_comfyui`: a MODEL, its latents, running nodes."""

from collections.abc import Mapping
from pathlib import Path

import comfy.samplers
import torch
from comfy_api.internal import make_locked_method_func
from comfy_api.latest import io
from pack.fantasyid_core.detection.faces import DetectedFace
from pack.fantasyid_core.fusion.checkpoint import split_published
from pack.fantasyid_core.io.weights import read, read_config
from pack.nodes.host.model import load_model
from pack.nodes.sampling import trailing_sigmas
from torch import Tensor

FACE = DetectedFace(
    image=torch.rand(200, 300, 3, generator=torch.Generator().manual_seed(0)),
    box=torch.tensor([100.0, 40.0, 200.0, 160.0]),
    landmarks=torch.tensor([[130.0, 80.0], [170.0, 80.0], [150.0, 105.0], [135.0, 130.0], [165.0, 130.0]]),
    score=1.0,
    crop=torch.zeros(1),
    to_crop=torch.zeros(1),
)
"""As the detector tells of a face, in a photo of noise."""


def load(folder: Path, weight_dtype: str = "default", vae_config: Mapping = {}, **changes):
    """A fresh MODEL of the transformer in a model folder, by its configuration with these changes."""
    part = folder / "transformer"
    config = read_config(part) | changes
    return load_model(config, split_published(read(part)), weight_dtype, vae_config)


def guider(model, positive: list, negative: list, cfg: float = 6.0) -> comfy.samplers.CFGGuider:
    """Classifier-free guidance away from one conditioning to another."""
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive, negative)
    made.set_cfg(cfg)
    return made


def sample(guider: comfy.samplers.CFGGuider, noise: Tensor, steps: int, sampler="ddim") -> Tensor:
    """Latents from noise (B, 16, T, H, W); `sampler` is one of ComfyUI's by its name, or one that was made."""
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    sigmas = trailing_sigmas(guider.model_patcher, steps)
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=0, disable_pbar=True)


def difference(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖ of two tensors of one shape."""
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item()


def execute(node: type, **inputs) -> io.NodeOutput:
    """Run a node as ComfyUI's execution does: a locked clone of the class, called by its normalised name."""
    node.GET_SCHEMA()
    return make_locked_method_func(node, node.FUNCTION, node.PREPARE_CLASS_CLONE({}))(**inputs)
