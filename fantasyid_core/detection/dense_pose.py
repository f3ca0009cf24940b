"""478 dense landmarks → the head's pose: yaw, pitch and roll in degrees, as `head_pose` has them."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ACROSS = ((33, 263), (234, 454))  # pairs of the person's right and left: outer corners of the eyes, sides of the face
_UP = (152, 10)  # chin and top of the forehead
_LEANS_BACK = 9.5  # degrees, of the line between these on a head that looks straight ahead


def pose_from_dense(points: Tensor) -> Tensor:
    """Points (N, 478, 3) px as `dense_landmarks.read` finds them → (N, 3) degrees of yaw, pitch and roll."""
    space = points.float() * points.new_tensor([1, -1, -1], dtype=torch.float32)  # y up, z towards the viewer
    across = F.normalize(sum((space[:, left] - space[:, right] for right, left in _ACROSS), space.new_zeros(1)), dim=-1)
    up = space[:, _UP[1]] - space[:, _UP[0]]
    up = F.normalize(up - (up * across).sum(-1, keepdim=True) * across, dim=-1)
    out = torch.linalg.cross(across, up)
    yaw = torch.asin(-across[:, 2].clamp(-1, 1))
    pitch = torch.atan2(-up[:, 2], out[:, 2])
    roll = torch.atan2(-across[:, 1], across[:, 0])
    return torch.stack([yaw, pitch, roll], -1).rad2deg() + yaw.new_tensor([0, _LEANS_BACK, 0])
