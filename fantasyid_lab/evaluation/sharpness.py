"""How sharp faces are in the frames in which heads turn: where video models smear, and a mean over all frames hides it.

A frame's face is aligned as identity encoders get it, at a fixed size; its sharpness is the root mean square of a
Laplacian of its slightly smoothed brightness, under a window of eyes, nose and mouth. Outputs stand against true frames
through the same crop: 1 as sharp, less with blur. Noise and flicker are sharp too, so this says nothing without the
measures of identity beside it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fantasyid_core.meters.attribute_regressor import AttributeReading
from fantasyid_core.meters.motion import turn_speed

from ..people.crops import align

TURNING = 3.0  # degrees a frame that yaw and pitch change by at least
CROP = 128  # px of the aligned face
_WINDOW_MIDDLE, _WINDOW_WIDTH = (0.5, 0.58), 0.14  # sides of the crop: between eyes and mouth
_SMOOTH = (0.25, 0.5, 0.25)
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def face_sharpness(frames: Tensor, landmarks: Tensor) -> Tensor:
    """Frames (N, H, W, 3), uint8 or 0…1, and landmarks (N, ≥ 5, 2) px → sharpness (N,)."""
    frames = frames if frames.dtype == torch.uint8 else frames * 255
    crops = align(frames, landmarks, CROP, landmarks.new_zeros(len(landmarks), 4)).mean(-1)[:, None]
    smooth = crops.new_tensor(_SMOOTH)
    crops = F.conv2d(crops, (smooth[:, None] * smooth)[None, None])
    detail = F.conv2d(crops, crops.new_tensor(_LAPLACIAN)[None, None])[:, 0]
    place = (torch.arange(detail.shape[-1], device=crops.device) + 2.5) / CROP
    across, down = ((-0.5 * ((place - m) / _WINDOW_WIDTH).square()).exp() for m in _WINDOW_MIDDLE)
    window = down[:, None] * across
    return ((detail.square() * window).sum((1, 2)) / window.sum()).sqrt()


def turning_sharpness(frames: Tensor, landmarks: Tensor, pose: Tensor) -> float:
    """Mean sharpness of a clip's frames (T, H, W, 3) in which the head turns, by landmarks (T, ≥ 5, 2) px and poses
    (T, 3) in degrees; NaN where it never does.
    """
    turning = turn_speed(pose) >= TURNING
    return face_sharpness(frames[turning], landmarks[turning]).mean().item()


def of_clips(clips: Sequence[Tensor], landmarks: Sequence[Tensor], pose: Sequence[Tensor]) -> Tensor:
    """Turning sharpness (N,) of N clips, each as `turning_sharpness` takes them."""
    return torch.tensor([turning_sharpness(*one) for one in zip(clips, landmarks, pose, strict=True)])


def of_readings(videos: Sequence[Tensor], readings: Sequence[AttributeReading]) -> Tensor:
    """Turning sharpness (N,) of square videos (T, S, S, 3) by what the attribute regressor reads in their frames."""
    sizes = [video.shape[1] for video in videos]
    landmarks = [r.landmarks.cpu() * size - 0.5 for r, size in zip(readings, sizes, strict=True)]
    return of_clips(videos, landmarks, [r.pose.cpu() for r in readings])


def ratio(ours: Tensor, true: Tensor) -> float:
    """Mean turning sharpness (N,) of outputs by that of true clips, over those in which both turn."""
    both = (ours.isfinite() & true.isfinite()).to(ours.dtype)
    return ((ours.nan_to_num() * both).sum() / (true.nan_to_num() * both).sum()).item()
