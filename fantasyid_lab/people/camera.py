"""From metres to pixels: the camera of a clip, and the face crop of identity encoders."""

import torch
from torch import Tensor

from fantasyid_core.detection.alignment import CROP_SIZE, FFHQ_TEMPLATE

from .batching import constant


def project(points: Tensor, camera: Tensor, size: int) -> Tensor:
    """Points (n, V, 3), metres, through cameras (n, 5) of `Clip` → (n, V, 3): x, y in px of a square picture (integers
    are pixel centres), and a depth that is linear in the picture, growing away from the viewer.
    """
    x, y, height, distance, roll = camera[:, None].unbind(-1)
    away = distance - points[..., 2]
    scale = size / height * distance / away
    across, up = (points[..., 0] - x) * scale, (points[..., 1] - y) * scale
    roll = torch.deg2rad(roll)
    right, down = across * roll.cos() + up * roll.sin(), across * roll.sin() - up * roll.cos()
    middle = (size - 1) / 2
    return torch.stack([right + middle, down + middle, -1 / away], -1)


def face_crop(landmarks: Tensor, shifts: Tensor, size: int) -> Tensor:
    """Similarities (n, 2, 3), picture px → px of a crop of size × size, that align faces as FFHQ does.

    Args:
        landmarks: (n, 5, 2) px of the picture, as `DetectedFace.landmarks`.
        shifts: (n, 4) of the crop against the exact one: x, y in sides of the crop, logarithm of the scale, degrees.
    """
    target = constant(FFHQ_TEMPLATE, landmarks.device) * (size / CROP_SIZE)
    source_middle, target_middle, centre = landmarks.mean(1), target.mean(0), (size - 1) / 2
    source, target = landmarks - source_middle[:, None], target - target_middle
    spread = source.square().sum((1, 2)).clamp(min=1e-12)
    p = (source * target).sum((1, 2)) / spread
    q = (source[..., 0] * target[:, 1] - source[..., 1] * target[:, 0]).sum(1) / spread
    _, _, stretch, turn = shifts.unbind(1)
    angle = torch.deg2rad(turn) + torch.atan2(q, p)
    scale = stretch.exp() * torch.hypot(p, q)
    # Shifts turn and scale about the crop's centre.
    middle = _similar(target_middle - centre, stretch.exp(), torch.deg2rad(turn)) + centre + shifts[:, :2] * size
    moved = middle - _similar(source_middle, scale, angle)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    return torch.stack([cosine, -sine, moved[:, 0], sine, cosine, moved[:, 1]], 1).unflatten(1, (2, 3))


def apply(similarity: Tensor, points: Tensor) -> Tensor:
    """Points (n, …, 2) through (n, 2, 3), in full precision whatever matrix products are set to."""
    matrix = similarity.reshape(len(similarity), *(1,) * (points.ndim - 2), 2, 3)
    return matrix[..., 0] * points[..., :1] + matrix[..., 1] * points[..., 1:] + matrix[..., 2]


def inverse(similarity: Tensor) -> Tensor:
    """The similarity (n, 2, 3) that undoes another."""
    p, q = similarity[:, 0, 0], similarity[:, 1, 0]
    square = p * p + q * q
    x, y = similarity[:, 0, 2], similarity[:, 1, 2]
    rows = [p, q, -(p * x + q * y), -q, p, q * x - p * y]
    return (torch.stack(rows, 1) / square[:, None]).unflatten(1, (2, 3))


def _similar(points: Tensor, scale: Tensor, angle: Tensor) -> Tensor:
    """Points (2,) or (n, 2), scaled and turned by (n,)."""
    x, y = points.unbind(-1)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
