"""478 dense landmarks of a face → numbers that do not depend on its place, size and lean in the photo.

What networks read that learned from rendered people (`dense_pose`, `reconstruction.dense_shape`). Recipe:
`tools/assets/dense_networks.py`.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = Path(__file__).parents[1] / "data" / "dense_networks.safetensors"
FEATURES = 200
CORNERS = (33, 263)  # outer corners of the eyes, the person's right first
MIRROR = (-1.0, 1.0, 1.0)


@lru_cache(maxsize=4)
def load(device: torch.device) -> dict[str, Tensor]:
    """All arrays of `WEIGHTS` on `device`, float32 but for `pairs`, read once (1.4 MB)."""
    arrays = load_file(WEIGHTS)
    return {name: (x.float() if x.is_floating_point() else x.long()).to(device) for name, x in arrays.items()}


def state_of(network: str, device: torch.device) -> dict[str, Tensor]:
    """The state of one of the file's networks, by the name that its tensors begin with."""
    start = f"{network}."
    return {name.removeprefix(start): x for name, x in load(device).items() if name.startswith(start)}


def features(points: Tensor, *, mirrored: bool = False) -> Tensor:
    """Principal components, each by its standard deviation.

    Args:
        points: (…, 478, 3) px as `dense_landmarks.read` finds them.
        mirrored: of the face as a mirror shows it.

    Returns:
        (…, K).
    """
    arrays = load(points.device)
    level = normalise(points)
    if mirrored:
        level = level[..., arrays["pairs"], :] * level.new_tensor(MIRROR)
    return ((level.flatten(-2) - arrays["mean"]) @ arrays["components"]) / arrays["deviations"]


def normalise(points: Tensor) -> Tensor:
    """Points (…, 478, 3) about their middle, the eyes level, their root mean square distance in the picture 1."""
    points = points.float() - points.float().mean(-2, keepdim=True)
    x, y = F.normalize(_axis(points), dim=-1).unbind(-1)
    turn = torch.stack([torch.stack([x, y], -1), torch.stack([-y, x], -1)], -2)  # photo → level
    flat = points[..., :2] @ turn.mT
    spread = flat.square().sum(-1).mean(-1).sqrt().clamp(min=1e-6)
    return torch.cat([flat, points[..., 2:]], -1) / spread[..., None, None]


def lean(points: Tensor) -> Tensor:
    """(…,) degrees by which the line between the eyes leans clockwise in the photo."""
    x, y = _axis(points).unbind(-1)
    return torch.rad2deg(torch.atan2(y, x))


def _axis(points: Tensor) -> Tensor:
    right, left = (points[..., corner, :2] for corner in CORNERS)
    return left - right
