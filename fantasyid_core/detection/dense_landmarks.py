"""Faces → 478 points in 3D each, with their confidence: the crops that the network expects, and the way back.

The network looks twice: at a square by the detector's five landmarks, then at the square by the points that it found
there, which is how it was trained and no longer depends on the detector. In a video the frame before gives the square.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import resample, sample_places
from .alignment import FFHQ_TEMPLATE, similarity
from .dense_pose import CONFIDENT, estimate_dense
from .faces import DetectedFace
from .landmark_network import POINTS, SIZE, load

_AROUND = 1.5  # side of the square in terms of the points' larger extent
_CORNERS = (33, 263)  # outer corners of the eyes, the person's right first; they lie level in the square
_MAX_SAMPLES = 8  # per pixel and direction, of very large faces
_LEAST_SCALE = 1e-4  # px of a square per px of the photo
_FARTHEST = 1e6  # px of the square from its corner to the photo's
_BATCH = 32  # faces that the network reads at a time, which bounds its memory
# Middle and side of the square in a 512 px FFHQ crop: medians over the labelled photos, see docs/detection.md.
_FIRST_MIDDLE, _FIRST_SIDE = (256.0, 293.0), 475.0


def with_dense_landmarks(
    faces: Sequence[DetectedFace], *, device: torch.device | str | None = None
) -> list[DetectedFace]:
    """The faces of one photo with their `dense_landmarks` and `dense_confidence`, see `read`, and with the `pose` that
    those tell where they are confident.
    """
    if not faces:
        return []
    points, confidence = read(faces[0].image, torch.stack([face.landmarks for face in faces]), device=device)
    poses = estimate_dense(points)
    return [
        replace(
            face,
            dense_landmarks=own,
            dense_confidence=certain,
            pose=pose if certain >= CONFIDENT else face.pose,
        )
        for face, own, certain, pose in zip(faces, points, confidence.tolist(), poses, strict=True)
    ]


def ensure_dense_landmarks(face: DetectedFace, *, device: torch.device | str | None = None) -> DetectedFace:
    """The face with its dense landmarks, which are read now where nobody asked for them before."""
    return face if face.dense_landmarks is not None else with_dense_landmarks([face], device=device)[0]


def read(photo: Tensor, landmarks: Tensor, *, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """478 points of every face of a photo.

    Args:
        photo: (H, W, 3) float 0…1.
        landmarks: (N, 5, 2) px, as `DetectedFace.landmarks`.
        device: where the network runs (default: where the photo is).

    Returns:
        points (N, 478, 3): x and y in px of the photo, integers are pixel centres, z in px, growing away from the
        viewer, about 0 in the middle of the face; and (N,) 0…1, how certainly each is a face. Where the photo is.
        Where landmarks are not finite or all in one place they are NaN and 0.
    """
    if not len(landmarks):
        return landmarks.new_zeros(0, POINTS, 3), landmarks.new_zeros(0)
    points, _ = look(photo, first_squares(landmarks), device)
    return look(photo, squares(points), device)


def first_squares(landmarks: Tensor) -> Tensor:
    """Five landmarks (N, 5, 2) px → (N, 2, 3), photo px → px of the network's input."""
    scale = SIZE / _FIRST_SIDE
    template = (landmarks.new_tensor(FFHQ_TEMPLATE) - landmarks.new_tensor(_FIRST_MIDDLE)) * scale + (SIZE - 1) / 2
    return torch.stack([similarity(own, template) for own in landmarks])


def squares(points: Tensor) -> Tensor:
    """Points (N, 478, ≥ 2) px → (N, 2, 3), photo px → px of the network's input: 1.5 times around them, eyes level."""
    flat = points[..., :2]
    right, left = (flat[:, corner] for corner in _CORNERS)
    x, y = F.normalize(left - right, dim=-1).unbind(-1)
    turn = torch.stack([torch.stack([x, y], -1), torch.stack([-y, x], -1)], 1)  # photo → level
    level = flat @ turn.mT
    low, high = level.amin(1), level.amax(1)
    scale = SIZE / ((high - low).amax(-1) * _AROUND).clamp(min=1e-3)
    shift = (SIZE - 1) / 2 - scale[:, None] * (low + high) / 2
    return torch.cat([scale[:, None, None] * turn, shift[..., None]], -1)


def look(photo: Tensor, to_crop: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """One look at squares (N, 2, 3) of a photo; see `read`."""
    usable = _is_usable(to_crop)
    if not usable.all():
        points, confidence = to_crop.new_full((len(to_crop), POINTS, 3), torch.nan), to_crop.new_zeros(len(to_crop))
        if usable.any():
            points[usable], confidence[usable] = look(photo, to_crop[usable], device)
        return points, confidence
    crops = torch.stack([cut(photo, own) for own in to_crop]).to(device or photo.device)
    found = [load(crops.device)(part) for part in crops.split(_BATCH)]
    points, confidence = (torch.cat(parts).to(photo.device) for parts in zip(*found, strict=True))
    # The network counts from the edge of its first pixel, the photo from the middle of its own.
    flat = _back(points[..., :2] - 0.5, to_crop)
    return torch.cat([flat, points[..., 2:] / _scale(to_crop)], -1), confidence


def cut(photo: Tensor, to_crop: Tensor) -> Tensor:
    """(3, 192, 192) of a photo (H, W, 3) by a similarity (2, 3), bilinear; where the photo ends its edge goes on.

    A pixel is the mean of as many samples as it covers pixels of the photo.
    """
    samples = min(_MAX_SAMPLES, max(1, math.ceil(1 / float(_scale(to_crop)))))
    places = _back(sample_places(SIZE, SIZE, samples, photo.device).flatten(0, 1)[None], to_crop[None])
    return resample(photo.float().movedim(-1, 0), places.unflatten(1, (SIZE * samples, -1))[0], samples, "bilinear")


def _is_usable(to_crop: Tensor) -> Tensor:
    """(N,) whether squares are finite, and neither a point nor far beyond any photo."""
    scale = _scale(to_crop)[:, 0, 0]
    finite = to_crop.isfinite().all(-1).all(-1)
    return finite & (scale > _LEAST_SCALE) & (scale < 1 / _LEAST_SCALE) & (to_crop[..., 2].abs() < _FARTHEST).all(-1)


def _scale(to_crop: Tensor) -> Tensor:
    """(…, 1, 1), px of the square per px of the photo."""
    return to_crop[..., :1, :2].norm(dim=-1, keepdim=True)


def _back(points: Tensor, to_crop: Tensor) -> Tensor:
    """Points (N, K, 2) in squares → px of the photo."""
    linear, shift = to_crop[..., :2], to_crop[:, None, :, 2]
    return (points - shift) @ (linear / _scale(to_crop).square())
