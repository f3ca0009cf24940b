"""Dense landmarks → the head's pose: how the points lie in space against those of the mean head.

Measured on rendered people and on photographs in docs/detection.md. The template is the mean head of FantasyID-nano,
where it has these points, turned by what the network sees heads looking too far down: `tools/assets/dense_template.py`.
"""

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .head_pose import HeadPose, of_crops, to_poses

TEMPLATE = Path(__file__).parents[1] / "data" / "dense_template.safetensors"
CONFIDENT = 0.5
"""From this confidence on dense landmarks are taken for a face's."""
_CROP_SHARE = 0.5  # in pitch, where the points and the crop's network err apart from each other


def estimate_dense(points: Tensor, crops: Tensor, to_crop: Tensor) -> list[HeadPose]:
    """Poses of faces from dense landmarks, and in pitch from their aligned crops as well.

    Args:
        points: (N, 478, 3) px.
        crops, to_crop: as for `head_pose.estimate`.
    """
    found = pose_from_dense(points)
    pitch = found[:, 1] + _CROP_SHARE * (of_crops(crops, to_crop)[:, 1] - found[:, 1])
    return to_poses(torch.stack([found[:, 0], pitch, found[:, 2]], 1))


def pose_from_dense(points: Tensor) -> Tensor:
    """Dense landmarks (…, 478, 3) px → yaw, pitch and roll (…, 3) in degrees, as in `HeadPose`.

    Points that all coincide or are not finite say nothing: the pose is frontal then.
    """
    turn = rotation_of(points)
    yaw = torch.asin(-turn[..., 2, 0].clamp(-1, 1))
    pitch = torch.atan2(-turn[..., 2, 1], turn[..., 2, 2])
    roll = torch.atan2(-turn[..., 1, 0], turn[..., 0, 0])
    return torch.rad2deg(torch.stack([yaw, pitch, roll], -1))


def rotation_of(points: Tensor) -> Tensor:
    """Dense landmarks (…, 478, 3) px → the head's rotation (…, 3, 3), y up and z towards the viewer (Kabsch)."""
    head = template(points.device)
    seen = points.float() * head.new_tensor([1, -1, -1])
    seen = seen - seen.mean(-2, keepdim=True)
    seen = torch.where(seen.isfinite().all(-1).all(-1)[..., None, None], seen, 0)
    u, _, vh = torch.linalg.svd(seen.mT @ head)
    u = torch.cat([u[..., :2], u[..., 2:] * torch.linalg.det(u @ vh)[..., None, None]], -1)
    return u @ vh


@lru_cache(maxsize=4)
def template(device: torch.device) -> Tensor:
    """The mean head's points (478, 3), metres from their middle, y up, z out of the face."""
    points = load_file(TEMPLATE)["points"].float().to(device)
    return points - points.mean(0)
