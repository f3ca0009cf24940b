"""From metres to pixels: the camera of a clip, and the face crop of identity encoders."""

import torch
from torch import Tensor

from ..alignment import CROP_SIZE, FFHQ_TEMPLATE


def project(points: Tensor, camera: Tensor, size: int) -> Tensor:
    """Points (n, V, 3), metres, through cameras (n, 5) of `Clip` → (n, V, 3): x, y in px of a square picture (integers
    are pixel centres), and a depth that is linear in the picture, growing away from the viewer."""
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
    target = landmarks.new_tensor(FFHQ_TEMPLATE) * (size / CROP_SIZE)
    source_middle, target_middle, centre = landmarks.mean(1), target.mean(0), (size - 1) / 2
    source, target = landmarks - source_middle[:, None], target - target_middle
    spread = source.square().sum((1, 2)).clamp(min=1e-12)
    p = (source * target).sum((1, 2)) / spread
    q = (source[..., 0] * target[:, 1] - source[..., 1] * target[:, 0]).sum(1) / spread
    _, _, stretch, turn = shifts.unbind(1)
    jitter = _turned(turn) * stretch.exp()[:, None, None]
    matrix = jitter @ torch.stack([p, -q, q, p], 1).unflatten(1, (2, 2))
    middle = (jitter @ (target_middle - centre)) + centre + shifts[:, :2] * size  # shifts turn about the crop's centre
    return torch.cat([matrix, (middle[..., None] - matrix @ source_middle[..., None])], 2)


def _turned(degrees: Tensor) -> Tensor:
    angle = torch.deg2rad(degrees)
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
