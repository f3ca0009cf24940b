"""YuNet (OpenCV Zoo, `face_detection_yunet_2023mar`, MIT) as a plain PyTorch network: boxes and five landmarks.

Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023. The weights are OpenCV Zoo's with their names tidied
and each level's four heads stacked into one; nothing was trained. Neither OpenCV nor onnxruntime is needed.
"""

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .detections import Detections, nms

WEIGHTS = Path(__file__).parents[1] / "data" / "yunet_2023mar.safetensors"
STRIDES = (8, 16, 32)


class Unit(nn.Sequential):
    """Pointwise, then depthwise 3 × 3 convolution."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__(
            nn.Conv2d(channels_in, channels, 1),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        )


class Stage(nn.ModuleList):
    """Units one after the other, each with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        for unit in self:
            x = unit(x).relu()
        return x


class YuNet(nn.Module):
    """(B, 3, H, W), BGR 0…255, H and W multiples of 32 → raw candidates in px of the input.

    They are boxes (B, A, 4), scores (B, A) and landmarks (B, A, 5, 2), each as in `Detections`.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        widths = ((16, 16), (16, 16, 32), (32, 32, 64), (64, 64, 64), (64, 64, 64), (64, 64, 64))
        self.stages = nn.ModuleList(Stage(Unit(a, b) for a, b in pairwise(stage)) for stage in widths)
        self.laterals = nn.ModuleList(Unit(64, 64) for _ in STRIDES)
        self.heads = nn.ModuleList(Unit(64, 1 + 1 + 4 + 10) for _ in STRIDES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(images).relu()
        levels = []
        for i, stage in enumerate(self.stages):
            if i in (1, 3, 4, 5):
                x = F.max_pool2d(x, 2)
            x = stage(x)
            levels.append(x)

        candidates, coarser = [], None
        for level, lateral, head, stride in reversed(
            list(zip(levels[3:], self.laterals, self.heads, STRIDES, strict=True))
        ):
            if coarser is not None:
                level = level + F.interpolate(coarser, scale_factor=2.0, mode="nearest")
            coarser = lateral(level).relu()
            candidates.insert(0, _decode(head(coarser), stride))
        boxes, scores, landmarks = (torch.cat(parts, 1) for parts in zip(*candidates, strict=True))
        return boxes, scores, landmarks


def _decode(x: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 16, h, w) head output → boxes, scores and landmarks of h·w candidates in px."""
    h, w = x.shape[2:]
    row, column = torch.meshgrid(torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij")
    cell = torch.stack([column, row], -1).reshape(1, h * w, 1, 2).to(x)
    classes, objectness, box, landmarks = x.flatten(2).transpose(1, 2).split((1, 1, 4, 10), -1)
    score = (classes.sigmoid() * objectness.sigmoid()).sqrt()
    centre = (cell[:, :, 0] + box[..., :2]) * stride
    half = box[..., 2:].exp() * (stride / 2)
    landmarks = (landmarks.unflatten(-1, (5, 2)) + cell) * stride
    return torch.cat([centre - half, centre + half], -1), score[..., 0], landmarks


@lru_cache(maxsize=4)
def load(device: torch.device) -> YuNet:
    """The network on `device`, read once (0.3 MB)."""
    network = YuNet()
    network.load_state_dict(load_file(WEIGHTS))
    return network.requires_grad_(False).eval().to(device)


def detect(images: Tensor, min_score: float = 0.6, overlap: float = 0.3) -> list[Detections]:
    """Faces in a batch of pictures at the size they have.

    Args:
        images: (B, H, W, 3) float, RGB 0…1, any size; the network runs where they are.
        min_score: candidates below are dropped.
        overlap: of two boxes whose intersection over union is above, the one with the lower score is dropped.

    Returns:
        Of each picture, on the CPU, best score first.
    """
    height, width = images.shape[1:3]
    blob = images.flip(-1).movedim(-1, 1).float() * 255
    blob = F.pad(blob, (0, -width % 32, 0, -height % 32))
    with torch.no_grad():
        candidates = [part.cpu() for part in load(images.device)(blob)]
    pictures = [Detections(*own) for own in zip(*candidates, strict=True)]
    return [nms(own[own.scores >= min_score], overlap) for own in pictures]
