"""DECA's regressor: a photo → FLAME's parameters (Feng et al. 2021, section 4.1). A ResNet-50 and two linear layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError
from ..io.listing import has_suffix
from ..io.weights import load_into, read
from . import known_files

SIZE = 224
PUBLISHED_PREFIX = "E_flame."  # of the coarse regressor; deca_model.tar also holds the detail networks


@dataclass(frozen=True, eq=False)
class DecaCode:
    """What the regressor says of B photos, in the order of its output.

    Attributes:
        shape: (B, 100) FLAME shape, in standard deviations.
        texture: (B, 50) albedo.
        expression: (B, 50) FLAME expression, in standard deviations.
        pose: (B, 6) rotation of head and jaw, axis-angle, radians.
        camera: (B, 3) scale and shift of a weak perspective.
        light: (B, 27) spherical harmonics.
    """

    shape: Tensor
    texture: Tensor
    expression: Tensor
    pose: Tensor
    camera: Tensor
    light: Tensor


CODE_SIZES = (100, 50, 50, 6, 3, 27)


def split(code: Tensor) -> DecaCode:
    """The regressor's output (B, 236) by meaning."""
    return DecaCode(*code.split(CODE_SIZES, dim=-1))


def project(vertices: Tensor, camera: Tensor) -> Tensor:
    """Where DECA's camera, a weak perspective, sees points.

    Args:
        vertices: (B, V, 3) in FLAME's space, y up, z towards the viewer.
        camera: (B, 3) scale and shift, as the regressor gives them.

    Returns:
        (B, V, 3) x and y in px of the regressor's input, y down; z in px, growing away from the viewer.
    """
    scale = camera[:, None, :1] * (SIZE / 2)
    shifted = vertices + torch.cat([camera[:, None, 1:], torch.zeros_like(camera[:, None, :1])], -1)
    return scale * shifted * camera.new_tensor([1, -1, -1]) + camera.new_tensor([SIZE / 2, SIZE / 2, 0])


@dataclass(frozen=True)
class RegressorSizes:
    """Sizes of a regressor.

    Attributes:
        stem: channels of the first convolution.
        stages: each (width of the 3×3 convolutions, channels, blocks); a stage's first block projects.
        hidden: width between the two linear layers.
    """

    stem: int
    stages: tuple[tuple[int, int, int], ...]
    hidden: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "RegressorSizes":
        """Those of tensors named as DECA names them. Raises KeyError where one is missing that tells a size."""
        stages = []
        while (prefix := f"encoder.layer{len(stages) + 1}.") + "0.conv3.weight" in tensors:
            channels, width = tensors[f"{prefix}0.conv3.weight"].shape[:2]
            blocks = len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
            stages.append((width, channels, blocks))
        stem, hidden = tensors["encoder.conv1.weight"].shape[0], tensors["layers.0.weight"].shape[0]
        return cls(stem, tuple(stages), hidden)


class Bottleneck(nn.Module):
    """ResNet block 1×1, 3×3, 1×1 with batch norm; the 3×3 convolution strides."""

    def __init__(self, channels_in: int, width: int, channels_out: int, stride: int, projects: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        projection = (nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))
        self.downsample = nn.Sequential(*projection) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """(B, 3, H, W) → (B, C): stem, stages that halve the picture (but the first), mean over it."""

    def __init__(self, sizes: RegressorSizes):
        super().__init__()
        channels = sizes.stem
        self.conv1 = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.stages = [f"layer{i + 1}" for i in range(len(sizes.stages))]
        for name, (width, out, count) in zip(self.stages, sizes.stages, strict=True):
            stride = 1 if name == "layer1" else 2
            first = Bottleneck(channels, width, out, stride, projects=True)
            more = (Bottleneck(out, width, out, 1, projects=False) for _ in range(count - 1))
            self.add_module(name, nn.Sequential(first, *more))
            channels = out

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        for name in self.stages:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


class Regressor(nn.Module):
    """Photos (B, 3, 224, 224) in 0…1 → code (B, 236); `split` takes it apart."""

    def __init__(self, sizes: RegressorSizes):
        super().__init__()
        self.encoder = ResNet(sizes)
        features = sizes.stages[-1][1] if sizes.stages else sizes.stem
        self.layers = nn.Sequential(
            nn.Linear(features, sizes.hidden), nn.ReLU(), nn.Linear(sizes.hidden, sum(CODE_SIZES))
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.encoder(images))

    @classmethod
    def from_state_dict(cls, tensors: dict[str, Tensor]) -> "Regressor":
        """Build from tensors named as DECA names them (`encoder.*`, `layers.*`); depths and widths are theirs.

        Raises:
            WeightsError: tensors are missing or do not fit.
        """
        try:
            with torch.device("meta"):
                module = cls(RegressorSizes.of(tensors))
        except (KeyError, IndexError, ValueError) as error:
            raise WeightsError(
                f"These weights are not of DECA's regressor (its tensors lack {error}). "
                "Use deca_model.tar as DECA's authors publish it."
            ) from error
        load_into(module, tensors, what="DECA regressor")
        return module.eval().requires_grad_(False)


def load_regressor(path: str | Path) -> Regressor:
    """Read the coarse regressor from `deca_model.tar` (nothing of it is executed) or a `.safetensors` file.

    Raises:
        WeightsMissingError, WeightsError: no such file; damaged, unsafe or of another model.
    """
    tensors = read(path)
    if has_suffix(path, [".tar"]):
        known_files.check(Path(path))
    published = {k.removeprefix(PUBLISHED_PREFIX): v for k, v in tensors.items() if k.startswith(PUBLISHED_PREFIX)}
    return Regressor.from_state_dict(published or tensors)
