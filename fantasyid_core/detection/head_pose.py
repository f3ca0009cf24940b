"""A face → the head's pose: yaw, pitch and roll; from its aligned crop or, less exactly, from five landmarks alone."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parents[1] / "data" / "head_pose.safetensors"
MIRROR = torch.tensor([-1.0, 1.0, -1.0])  # what a mirror does to yaw, pitch and roll
SIZE = 64  # px of the crop that the network sees
_GREY = (0.2125, 0.7154, 0.0721)
_SWAPPED = (1, 0, 2, 4, 3)  # the five landmarks' names in a mirror
# Share of the landmarks' estimate in yaw, pitch and roll, the crop's is the rest. On rendered people the crop's alone
# would do best; of photographed faces in profile it makes far too little yaw.
_SHARE = (1.0, 0.5, 0.5)


@dataclass(frozen=True)
class HeadPose:
    """How a head is turned, in degrees; the rotation is roll · yaw · pitch applied to the frontal head, pitch first.

    Attributes:
        yaw: above 0 the face looks to the picture's right; about −90…90.
        pitch: above 0 it looks up; about −60…60.
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


class PoseNet(nn.Module):
    """Two small networks, of aligned grey crops and of landmarks; 95,000 parameters."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels, stride in ((1, 16, 2), (16, 24, 2), (24, 32, 1), (32, 48, 2), (48, 64, 2)):
            convolution = nn.Conv2d(channels_in, channels, 3, stride, 1)
            layers += [convolution, nn.GroupNorm(4, channels), nn.SiLU()]
        self.crop_net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 32), nn.SiLU(), nn.Linear(32, 3))
        hidden = [layer for width in (10, 64, 64) for layer in (nn.Linear(width, 64), nn.SiLU())]
        self.landmark_net = nn.Sequential(*hidden, nn.Linear(64, 3))

    def of_crops(self, grey: Tensor) -> Tensor:
        """(N, 1, 64, 64) as `grey` makes them → (N, 3) degrees of yaw, pitch and roll in the crop."""
        mean, spread = grey.mean((1, 2, 3), keepdim=True), grey.std((1, 2, 3), keepdim=True)
        return self.crop_net((grey - mean) / spread.clamp(min=0.02)) * 30

    def of_landmarks(self, landmarks: Tensor) -> Tensor:
        """(N, 5, 2) px, y down → (N, 3) degrees of yaw, pitch and roll in the picture."""
        points = landmarks - landmarks.mean(1, keepdim=True)
        down = points[:, 3:].mean(1) - points[:, :2].mean(1)  # from the eyes to the mouth
        lean = torch.atan2(-down[:, 0], down[:, 1])
        cosine, sine = lean.cos()[:, None], lean.sin()[:, None]
        x, y = points.unbind(-1)
        upright = torch.stack([cosine * x + sine * y, cosine * y - sine * x], -1)
        spread = upright.square().sum(-1).mean(1).sqrt().clamp(min=1e-6)
        turned = torch.rad2deg(self.landmark_net((upright / spread[:, None, None]).flatten(1)))
        return turned + F.pad(torch.rad2deg(lean)[:, None], (2, 0))


@lru_cache(maxsize=4)
def load(device: torch.device) -> PoseNet:
    """The networks on `device`, read once (0.2 MB)."""
    network = PoseNet()
    network.load_state_dict(load_file(WEIGHTS))
    return network.requires_grad_(False).eval().to(device)


def grey(crops: Tensor) -> Tensor:
    """FFHQ crops (N, S, S, 3) float 0…1 → (N, 1, 64, 64)."""
    light = (crops.float() @ crops.new_tensor(_GREY, dtype=torch.float32))[:, None]
    return F.interpolate(light, (SIZE, SIZE), mode="bilinear", antialias=True)


def mirror(landmarks: Tensor) -> Tensor:
    """Landmarks (N, 5, 2) as the mirrored picture shows them, but for a shift."""
    return landmarks[:, list(_SWAPPED)] * landmarks.new_tensor([-1, 1])


def estimate(landmarks: Tensor, crops: Tensor, to_crop: Tensor) -> list[HeadPose]:
    """Poses of faces, by small networks fitted on rendered people; a mirrored face gives exactly the mirrored pose.

    Recipe: tools/assets/fit_head_pose.py; accuracy: docs/detection.md.

    Args:
        landmarks: (N, 5, 2) px of the photo; crops: (N, S, S, 3) float 0…1, FFHQ-aligned.
        to_crop: (N, 2, 3) photo px → crop px.
    """
    if not len(crops):
        return []
    by_crop = of_crops(crops, to_crop)
    # Of two angles the mean is taken the short way round.
    apart = torch.remainder(_of_landmarks(landmarks) - by_crop + 180, 360) - 180
    return to_poses(by_crop + apart * apart.new_tensor(_SHARE))


def of_crops(crops: Tensor, to_crop: Tensor) -> Tensor:
    """Yaw, pitch and roll in the photo (N, 3), degrees, by aligned crops alone; arguments as for `estimate`."""
    light = grey(crops)
    with torch.no_grad():
        one, other = load(crops.device).of_crops(torch.cat([light, light.flip(3)])).chunk(2)
    lean = torch.rad2deg(torch.atan2(to_crop[:, 1, 0], to_crop[:, 0, 0]))
    return (one + other * MIRROR.to(one)) / 2 - F.pad(lean[:, None], (2, 0))


def pose_from_landmarks(landmarks: Tensor) -> HeadPose:
    """Pose of one face from its five landmarks alone, (5, 2) px as detectors find them; pitch is rough then.

    Landmarks that all coincide or are not finite say nothing: the pose is frontal then.
    """
    spread = (landmarks - landmarks.mean(0)).abs().sum()
    return to_poses(_of_landmarks(landmarks[None]))[0] if 0 < float(spread) < torch.inf else FRONTAL


def _of_landmarks(landmarks: Tensor) -> Tensor:
    landmarks = landmarks.float()
    with torch.no_grad():
        one, other = load(landmarks.device).of_landmarks(torch.cat([landmarks, mirror(landmarks)])).chunk(2)
    # Their rolls may lie either side of ±180°.
    apart = torch.remainder(other * MIRROR.to(one) - one + 180, 360) - 180
    return one + apart / 2


def to_poses(angles: Tensor) -> list[HeadPose]:
    """Yaw, pitch and roll (N, 3) in degrees → poses, the roll in −180…180."""
    roll = torch.remainder(angles[:, 2:] + 180, 360) - 180
    return [HeadPose(*pose) for pose in torch.cat([angles[:, :2], roll], 1).tolist()]
