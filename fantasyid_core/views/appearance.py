"""How alike two faces look, without a recognition network: histograms of gradients over the aligned crop (HOG).

Gradients' directions, normalised by cell, are robust to light and, over cells of 2 cm, to small movements. What all
faces share is taken away, and so are the directions in which pictures of one person differ most, by pose, expression
and hair; they were learned on synthetic people (`tools/assets/build_appearance.py`). It is not face recognition, see
docs/views.md for how far it goes. A recognition network, where there is one, takes its place as another `Recogniser`.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..detection import yunet
from ..detection.alignment import CROP_SIZE, FFHQ_TEMPLATE, align

FILE = Path(__file__).parents[1] / "data" / "appearance.safetensors"
# The face with its hairline and chin in the FFHQ crop, px: left, top, right, bottom.
_AREA = (64, 64, 448, 500)
_HEIGHT, _WIDTH, _CELL, _DIRECTIONS = 84, 72, 8, 8
# The descriptor as directions × rows × columns, and its cells from brows to chin, without hair and background.
_GRID, _INNER = (8, 9, 8), (slice(2, 8), slice(1, 7))
# The detector's landmarks differ by some pixels between a large and a small picture of one face; found once more at
# one size they agree.
_DETECTION_SIZE, _REALIGNED_SIZE = 96, 128


class Recogniser(NamedTuple):
    """What tells people apart.

    Attributes:
        embed: aligned crops (N, 512, 512, 3) float 0…1 → unit vectors (N, D), on any device.
        same: cosine from which on two faces are taken for one person.
        different: cosine below which they are taken for two; in between it cannot tell.
    """

    embed: Callable[[Tensor], Tensor]
    same: float
    different: float


@torch.no_grad()
def describe(crops: Tensor) -> Tensor:
    """Aligned crops (N, S, S, 3) float 0…1 → unit vectors (N, 576) float32 on their device."""
    mean, nuisance = _load_statistics(crops.device)
    centred = gradients(crops) - mean
    return F.normalize(centred - centred @ nuisance.T @ nuisance, dim=1)


@torch.no_grad()
def gradients(crops: Tensor) -> Tensor:
    """Aligned crops (N, S, S, 3) float 0…1 → unit histograms of their gradients (N, 576), the same for all purposes."""
    crops = _realign(crops.float())
    x0, y0, x1, y1 = (round(edge * _REALIGNED_SIZE / CROP_SIZE) for edge in _AREA)
    grey = crops[:, y0:y1, x0:x1] @ crops.new_tensor([0.299, 0.587, 0.114])
    grey = F.interpolate(grey[:, None], (_HEIGHT, _WIDTH), mode="bilinear", antialias=True)
    return F.normalize(_histograms(grey).flatten(1), dim=1)


@torch.no_grad()
def face_likeness(crops: Tensor) -> Tensor:
    """How much aligned crops (N, S, S, 3) look like an open face from brows to chin: cosine to the mean face, (N,)."""
    mean, _ = _load_statistics(crops.device)
    inner = [x.reshape(-1, *_GRID)[:, :, _INNER[0], _INNER[1]].flatten(1) for x in (gradients(crops), mean)]
    return F.cosine_similarity(*inner, dim=1)


def _realign(crops: Tensor) -> Tensor:
    """(N, S, S, 3) → (N, 128, 128, 3), aligned by the landmarks that the detector finds in the crop itself."""
    size = (_DETECTION_SIZE, _DETECTION_SIZE)
    small = F.interpolate(crops.movedim(-1, 1), size, mode="bilinear", antialias=True).movedim(1, -1)
    scale = crops.shape[1] / CROP_SIZE
    template = torch.tensor(FFHQ_TEMPLATE) * scale
    aligned = []
    for crop, faces in zip(crops, yunet.detect(small, min_score=0.5), strict=True):
        candidates = faces.landmarks * (crops.shape[1] / _DETECTION_SIZE)
        distance = (candidates - template).square().sum((1, 2))
        landmarks = candidates[distance.argmin()] if len(candidates) else template
        aligned.append(align(crop, landmarks.to(crop.device), _REALIGNED_SIZE)[0])
    return torch.stack(aligned)


def _histograms(grey: Tensor) -> Tensor:
    """(N, 1, H, W) → (N, 8, H/8, W/8): how strong the gradients of each direction are in each cell."""
    dx = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
    dy = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    angle = torch.atan2(dy, dx) * (_DIRECTIONS / (2 * math.pi))
    direction = torch.arange(_DIRECTIONS, device=grey.device).view(1, -1, 1, 1)
    difference = (angle - direction + _DIRECTIONS / 2) % _DIRECTIONS - _DIRECTIONS / 2
    votes = (dx.square() + dy.square()).sqrt() * (1 - difference.abs()).clamp(min=0)
    # Cells overlap by half, so that a pixel of misalignment changes little.
    cells = F.avg_pool2d(F.pad(votes, (1, 1, 1, 1)), 2 * _CELL, _CELL)
    return cells / (cells.square().sum(1, keepdim=True).sqrt() + 0.02)


@lru_cache(maxsize=4)
def _load_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """The mean descriptor (576,) and the directions to leave out (K, 576), orthonormal."""
    tensors = load_file(FILE)
    return tensors["mean"].to(device), tensors["nuisance"].to(device)


# Measured in docs/views.md.
BUILT_IN = Recogniser(describe, same=0.48, different=0.28)
