"""MediaPipe's face landmark network with attention (Apache-2.0) in plain PyTorch: 478 points in 3D, and whether a face.

Grishchenko et al., "Attention Mesh: High-fidelity Face Mesh Prediction in Real-time", 2020. A small trunk reads 468
points of the whole face; lips and eyes are then cut out of its early features, straightened by those points, and read
again, the irises with them. The weights are those of `face_landmark_with_attention.tflite`, as exact as the file has
them (float16); nothing was trained. Converted by `tools/assets/landmark_network.py`.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parents[1] / "data" / "face_landmarks.safetensors"
SIZE = 192  # px of the input
MESH, POINTS = 468, 478
_PATCH = 16  # feature px of a straightened lip or eye region
_ENLARGED = 1.5  # its side in terms of what it is to show
_FINER = 4  # of the unit that heads tell places in, to a feature px of the region
_STRIDE = SIZE // 48  # input px per px of the features that regions are cut out of
# What the published file calls left is the picture's left, which is the person's right.
_RIGHT_IRIS, _LEFT_IRIS = (468, 473), (473, 478)
_EYE_CONTOUR = 16  # the first of an eye's points run along its lids


class Block(nn.Module):
    """Depthwise 3 × 3 and pointwise convolution with a shortcut, (B, C, H, W) → (B, C', H, W) or half as large."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1):
        super().__init__()
        self.stride, self.added = stride, channels - channels_in
        self.depthwise = nn.Conv2d(channels_in, channels_in, 3, stride, padding=stride % 2, groups=channels_in)
        self.pointwise = nn.Conv2d(channels_in, channels, 1)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return self.activation(x + self.pointwise(self.depthwise(x)))
        shortcut = F.max_pool2d(x, 2)
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        return self.activation(shortcut + self.pointwise(self.depthwise(_pad(x))))


def _pad(x: Tensor) -> Tensor:
    """What TensorFlow's "same" adds to an even picture before a 3 × 3 convolution that halves it."""
    return F.pad(x, (0, 1, 0, 1))


def _stage(channels_in: int, channels: int, length: int = 3) -> list[Block]:
    """Blocks of which the first halves the picture."""
    return [Block(channels_in, channels, 2), *(Block(channels, channels) for _ in range(length - 1))]


def _head(outputs: int, side: int) -> list[nn.Module]:
    """The last layers: 128 features on side × side → numbers."""
    return [nn.Conv2d(128, 32, 1), nn.PReLU(32), Block(32, 32), nn.Conv2d(32, outputs, side)]


class Region(nn.Module):
    """Points of the lips or of an eye (with its iris), from features cut out and straightened.

    Attributes:
        points: (K,) int64, which of the 478 its head refines.
        axis: (2,) int64, the two of the 468 that lie level in the straightened region.
    """

    points: Tensor
    axis: Tensor

    def __init__(self, points: int, *, iris: bool = False):
        super().__init__()
        self.register_buffer("points", torch.zeros(points, dtype=torch.int64))
        self.register_buffer("axis", torch.zeros(2, dtype=torch.int64))
        self.trunk = nn.Sequential(Block(32, 32), Block(32, 32), *_stage(32, 64), Block(64, 128, 2))
        self.heads = nn.ModuleList(
            nn.Sequential(Block(128, 128), Block(128, 128), *_stage(128, 128), *_head(2 * count, 2))
            for count in ([points, 5] if iris else [points])
        )

    def forward(self, features: Tensor, mesh: Tensor) -> list[Tensor]:
        """Features (B, 32, 48, 48), mesh (B, 468, 3) px of the input → for each head (B, K, 2) px of the input."""
        to_input = self._place(mesh[..., :2])
        x = self.trunk(_cut(features, to_input))
        found = [head(x).flatten(1).unflatten(1, (-1, 2)) / _FINER for head in self.heads]
        return [_transform(points, to_input) for points in found]

    def _place(self, mesh: Tensor) -> Tensor:
        """(B, 2, 3): px of the straightened region → px of the input."""
        start, end = mesh[:, self.axis].unbind(1)
        x, y = F.normalize(end - start, dim=-1).unbind(-1)
        turn = torch.stack([torch.stack([x, -y], -1), torch.stack([y, x], -1)], -2)  # region → picture
        own = mesh[:, self.points] @ turn
        low, high = own.amin(1), own.amax(1)
        scaled = turn * ((high - low) * (_ENLARGED / _PATCH))[:, None]
        middle = turn @ ((low + high) / 2)[..., None]
        shift = middle - scaled.sum(-1, keepdim=True) * (_PATCH / 2)
        return torch.cat([scaled, shift], -1)


def _transform(points: Tensor, affine: Tensor) -> Tensor:
    """(B or 1, K, 2) and (B, 2, 3) → (B, K, 2)."""
    return points @ affine[:, :, :2].mT + affine[:, None, :, 2]


def _cut(features: Tensor, to_input: Tensor) -> Tensor:
    """Bilinear samples (B, C, 16, 16) at the middles of the region's pixels; 0 where the features end."""
    side = features.shape[-1]
    steps = torch.arange(_PATCH, device=features.device, dtype=features.dtype) + 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = _transform(torch.stack([x, y], -1).flatten(0, 1)[None], to_input) / _STRIDE - 0.5
    inside = ((places >= 0) & (places <= side - 1)).all(-1)
    grid = (places * (2 / (side - 1)) - 1).unflatten(1, (_PATCH, _PATCH))
    sampled = F.grid_sample(features, grid, mode="bilinear", align_corners=True)
    return sampled * inside.unflatten(1, (1, _PATCH, _PATCH))


class LandmarkNetwork(nn.Module):
    """(B, 3, 192, 192), RGB 0…1 → points (B, 478, 3) px of the input, and (B,) 0…1, how certainly there is a face.

    z grows away from the viewer, in the same unit, about 0 in the middle of the face. Point numbers are MediaPipe's.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.PReLU(16))
        self.early = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 32, 2))
        self.late = nn.Sequential(
            Block(32, 32), Block(32, 32), *_stage(32, 64), *_stage(64, 128), *_stage(128, 128), *_stage(128, 128),
            nn.Conv2d(128, 32, 1), nn.PReLU(32), Block(32, 32),
        )  # fmt: skip
        self.mesh = nn.Conv2d(32, 3 * MESH, 3)
        self.flag = nn.Conv2d(32, 1, 3)
        self.lips = Region(80)
        self.right_eye = Region(71, iris=True)
        self.left_eye = Region(71, iris=True)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        early = self.early(self.stem(_pad(crops.to(memory_format=torch.channels_last))))
        late = self.late(early)
        mesh = self.mesh(late).flatten(1).unflatten(1, (MESH, 3))
        points = F.pad(mesh, (0, 0, 0, POINTS - MESH))
        (points[:, self.lips.points, :2],) = self.lips(early, mesh)
        for eye, (first, last) in ((self.right_eye, _RIGHT_IRIS), (self.left_eye, _LEFT_IRIS)):
            points[:, eye.points, :2], points[:, first:last, :2] = eye(early, mesh)
            points[:, first:last, 2] = mesh[:, eye.points[:_EYE_CONTOUR], 2].mean(1, keepdim=True)
        return points, self.flag(late).flatten().sigmoid()


@lru_cache(maxsize=4)
def load(device: torch.device) -> LandmarkNetwork:
    """The network on `device`, float32, read once (2.5 MB)."""
    network = LandmarkNetwork()
    network.load_state_dict(load_file(WEIGHTS))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stub lacks it)
    return network.requires_grad_(False).eval().to(device)
