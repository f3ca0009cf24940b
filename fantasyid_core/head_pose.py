"""Five landmarks → the head's pose: yaw, pitch and roll.

Scaled orthographic fit of a mean face: for every yaw and pitch of a grid the best scale, roll and shift are a complex
linear regression (see `alignment.similarity`), so that one pass over the grid finds the global optimum. Nothing
iterates, and the mirror pose that troubles fits of flat targets loses by the depth of the nose.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

# Metres, y up, z out of the face, origin between the eyes: the person's right eye, left eye, nose tip, right and left
# mouth corner. Heights and widths are the FFHQ template's at an eye distance of 63 mm.
MEAN_FACE = (
    (-0.0315, 0.0, 0.0),
    (0.0315, 0.0, 0.0),
    (0.0, -0.037, 0.030),
    (-0.028, -0.0656, 0.004),
    (0.028, -0.0656, 0.004),
)
WEIGHTS = Path(__file__).parent / "data" / "head_pose.safetensors"
MAX_YAW, MAX_PITCH, _STEP = 90, 60, 1.0
# A few pixels of landmark noise can look like a strongly turned head; faces that detectors find mostly are not.
_PRIOR = 2e-3


@dataclass(frozen=True)
class HeadPose:
    """How a head is turned, in degrees; the rotation is roll · yaw · pitch applied to the frontal head, pitch first.

    Attributes:
        yaw: above 0 the face looks to the picture's right; −90…90.
        pitch: above 0 it looks up; −60…60.
        roll: above 0 the head leans clockwise in the picture, its top to the right; −180…180.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


FRONTAL = HeadPose()


def rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """Degrees, any shape (…) → (…, 3, 3), in space with y up and z towards the viewer."""
    (cy, sy), (cp, sp), (cr, sr) = ((a.deg2rad().cos(), a.deg2rad().sin()) for a in (yaw, pitch, roll))
    one, nil = torch.ones_like(cy), torch.zeros_like(cy)

    def matrix(*rows: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    about_x = matrix((one, nil, nil), (nil, cp, sp), (nil, -sp, cp))
    about_y = matrix((cy, nil, sy), (nil, one, nil), (-sy, nil, cy))
    about_z = matrix((cr, sr, nil), (-sr, cr, nil), (nil, nil, one))
    return about_z @ about_y @ about_x


def pose_from_landmarks(landmarks: Tensor) -> HeadPose:
    """Pose of one face from its five landmarks (5, 2) px, y down: right eye, left eye, nose, right, left mouth corner.

    Landmarks that all coincide say nothing: the pose is frontal then.
    """
    grid, shapes = _grid()
    points = torch.view_as_complex(landmarks.detach().double().cpu().contiguous())
    points = points - points.mean()
    spread = float(points.abs().square().sum())
    if not spread > 0:
        return FRONTAL
    # |points − a · shape|² at the best complex a = scale · e^(i roll)
    factors = shapes.conj() @ points / shapes.abs().square().sum(-1)
    explained = factors.abs().square() * shapes.abs().square().sum(-1) / spread
    cost = 1 - explained + _PRIOR * (grid.deg2rad().square()).sum(-1)
    best = int(cost.argmin())
    yaw, pitch = grid[best].tolist()
    return HeadPose(yaw, pitch, math.degrees(float(factors[best].angle())))


@lru_cache(maxsize=1)
def _grid() -> tuple[Tensor, Tensor]:
    """Poses (G, 2) of yaw and pitch, and the mean face seen so, centred, as complex numbers (G, 5), y down."""
    yaw, pitch = torch.meshgrid(
        torch.arange(-MAX_YAW, MAX_YAW + 1, _STEP, dtype=torch.float64),
        torch.arange(-MAX_PITCH, MAX_PITCH + 1, _STEP, dtype=torch.float64),
        indexing="ij",
    )
    grid = torch.stack([yaw.flatten(), pitch.flatten()], -1)
    turned = torch.tensor(MEAN_FACE, dtype=torch.float64) @ rotation(*grid.T, torch.zeros(len(grid))).mT
    shapes = torch.complex(turned[..., 0], -turned[..., 1])
    return grid, shapes - shapes.mean(-1, keepdim=True)


class PoseNet(nn.Sequential):
    """(N, 10) normalised landmarks → (N, 3): yaw, pitch and roll in radians, roll against the face's own axis."""

    def __init__(self, width: int = 64):
        super().__init__(
            nn.Linear(10, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 3),
        )  # fmt: skip


def estimate(network: PoseNet, landmarks: Tensor) -> Tensor:
    """Landmarks (N, 5, 2) px → (N, 3) degrees of yaw, pitch, roll; a mirrored face gives exactly the mirrored pose."""
    mirrored = landmarks[:, [1, 0, 2, 4, 3]] * landmarks.new_tensor([-1, 1])
    one, other = _one_sided(network, landmarks), _one_sided(network, mirrored)
    return (one + other * one.new_tensor([-1, 1, -1])) / 2


def _one_sided(network: PoseNet, landmarks: Tensor) -> Tensor:
    points = landmarks - landmarks.mean(1, keepdim=True)
    down = points[:, 3:].mean(1) - points[:, :2].mean(1)  # from the eyes to the mouth
    lean = torch.atan2(-down[:, 0], down[:, 1])
    cosine, sine = lean.cos()[:, None], lean.sin()[:, None]
    x, y = points.unbind(-1)
    upright = torch.stack([cosine * x + sine * y, cosine * y - sine * x], -1)
    spread = upright.square().sum(-1).mean(1).sqrt().clamp(min=1e-6)
    turned = network((upright / spread[:, None, None]).flatten(1))
    return torch.rad2deg(torch.cat([turned[:, :2], turned[:, 2:] + lean[:, None]], 1))
