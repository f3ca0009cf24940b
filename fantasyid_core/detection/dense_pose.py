"""Dense landmarks → the head's pose, by a small network; beyond what it learned, by how the points lie in space.

The network learned from what is read in photos of rendered people (`tools/assets/dense_networks.py`). The template of
the other way is the mean head of FantasyID-nano, where it has these points, turned by what the landmark network sees
heads looking too far down: `tools/assets/dense_template.py`. Measured in docs/detection.md.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .dense_features import FEATURES, features, lean, state_of
from .head_pose import MIRROR, HeadPose, to_poses

TEMPLATE = Path(__file__).parents[1] / "data" / "dense_template.safetensors"
CONFIDENT = 0.5
"""From this confidence on dense landmarks are taken for a face's."""
_UNIT = 30.0  # degrees
_WIDTH = 96
_LEARNED, _UNKNOWN = 55.0, 70.0  # degrees from the front up to which the network is believed, and from which on not


class PoseNetwork(nn.Module):
    """Features (N, 200) → (N, 3) degrees of yaw, pitch and roll of a head whose eyes are level; 29,000 parameters."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 3)
        )
        self.lin = nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return _UNIT * (self.net(x) + self.lin(x))


@lru_cache(maxsize=4)
def load(device: torch.device) -> PoseNetwork:
    """The network on `device`, read once."""
    network = PoseNetwork()
    network.load_state_dict(state_of("pose", device))
    return network.requires_grad_(False).eval().to(device)


def estimate_dense(points: Tensor) -> list[HeadPose]:
    """Poses of faces from their dense landmarks (N, 478, 3) px."""
    return to_poses(pose_from_dense(points))


@torch.no_grad()
def pose_from_dense(points: Tensor) -> Tensor:
    """Dense landmarks (…, 478, 3) px → yaw, pitch and roll (…, 3) in degrees, as in `HeadPose`.

    A mirrored face gives exactly the mirrored pose. Points that all coincide or are not finite say nothing: the pose is
    frontal then.
    """
    seen = points.float()
    apart = (seen[..., :2] - seen[..., :1, :2]).abs().amax((-1, -2))
    usable = (apart > 0) & seen.isfinite().all(-1).all(-1)
    in_space = _in_space(seen)
    network = load(seen.device)
    one, other = (network(features(seen, mirrored=way)) for way in (False, True))
    learned = (one + other * MIRROR.to(one)) / 2 + F.pad(lean(seen)[..., None], (2, 0))
    far = in_space[..., :2].abs().amax(-1, keepdim=True)
    share = ((_UNKNOWN - far) / (_UNKNOWN - _LEARNED)).clamp(0, 1)
    change = torch.remainder(learned - in_space + 180, 360) - 180
    pose = torch.where(usable[..., None], in_space + share * change, 0)
    return torch.cat([pose[..., :2], torch.remainder(pose[..., 2:] + 180, 360) - 180], -1)


def _in_space(points: Tensor) -> Tensor:
    """Yaw, pitch and roll (…, 3) in degrees by how the points lie in space."""
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
