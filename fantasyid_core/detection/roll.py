"""Roll de-rotation: landmarks of faces that lean. The detector's are right on an upright face only.

YuNet puts the landmarks of a face that leans by 20° as if it leaned by 4° to 9° (measured: docs/detection.md). So the
surroundings are turned by several angles; the angle at which the landmarks would show no lean is the face's own, and a
last pass at that angle finds them where they are.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import resize
from .alignment import FFHQ_TEMPLATE
from .detections import Detections, Detector
from .verify import AROUND, LEAST

_COARSE, _FINE = (-40.0, -20.0, 0.0, 20.0, 40.0), (-12.0, 12.0)  # degrees
_SIZE = 288  # px of the surroundings: where the face has 144 px its landmarks follow the lean most
_MARGIN = 1.5  # a turned square of the surroundings fits into one this much larger
_MAX_LEAN = 60.0
# Degrees of lean in the landmarks for one of the face: 0.3 to 0.9 on people, about 0 on dolls, animals and drawings,
# whose landmarks stay as they are.
_LEAST_GAIN = 0.25


class Passes(NamedTuple):
    """What is seen in the middle of squares, each turned by several angles, in sides of the square from its middle.

    Attributes:
        scores: (N, A), 0 where nothing was found.
        landmarks: (N, A, 5, 2).
    """

    scores: Tensor
    landmarks: Tensor


def derotate_landmarks(photo: Tensor, faces: Detections, detector: Detector) -> Detections:
    """Faces with better landmarks, or their own where the last pass does not show them.

    Args:
        photo: (H, W, 3) float RGB 0…1.
        faces: that stand within about 50° of upright.
        detector: searches the turned surroundings.
    """
    if not len(faces):
        return faces
    centres = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2
    sides = faces.sizes.amax(-1).clamp(min=1) * AROUND
    squares = [_square(photo, *place) for place in zip(centres.tolist(), sides.tolist(), strict=True)]
    bases = torch.stack([resize(square, round(_SIZE * _MARGIN), round(_SIZE * _MARGIN)) for square in squares])

    angles = centres.new_tensor(_COARSE).repeat(len(faces), 1)
    passes = _detect_turned(bases, angles, detector, mirrored=False)
    coarse = _leans(angles, passes)
    likeliest = angles.gather(1, passes.scores.argmax(1, keepdim=True))[:, 0]
    angles = torch.where(coarse.isnan(), likeliest, coarse)[:, None] + centres.new_tensor(_FINE)
    fine = _leans(angles.repeat(1, 2), _detect_turned(bases, angles, detector, mirrored=True))
    lean = torch.where(fine.isnan(), coarse, fine).nan_to_num(0)
    last = _detect_turned(bases, lean[:, None], detector, mirrored=True)

    weight = last.scores[..., None, None]
    points = (last.landmarks * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
    cosine, sine = torch.deg2rad(lean).cos()[:, None], torch.deg2rad(lean).sin()[:, None]
    x, y = points.unbind(-1)
    turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
    landmarks = turned * sides[:, None, None] + centres[:, None]
    is_seen = (last.scores.mean(1) > 0.8 * faces.scores)[:, None, None]
    return Detections(faces.boxes, faces.scores, torch.where(is_seen, landmarks, faces.landmarks))


def _square(photo: Tensor, centre: list[float], side: float) -> Tensor:
    """The square of `_MARGIN` times that side about a point; where the photo ends its edge is repeated."""
    height, width = photo.shape[:2]
    half = max(1, round(side * _MARGIN / 2))
    x, y = round(centre[0]), round(centre[1])
    part = photo[max(y - half, 0) : max(y + half, 1), max(x - half, 0) : max(x + half, 1)]
    outside = (max(half - x, 0), max(x + half - width, 0), max(half - y, 0), max(y + half - height, 0))
    if not any(outside):
        return part
    return F.pad(part.movedim(-1, 0)[None], outside, mode="replicate")[0].movedim(0, -1)


def _detect_turned(bases: Tensor, angles: Tensor, detector: Detector, mirrored: bool) -> Passes:
    """The face in the middle of squares (N, b, b, 3), each turned by angles (N, A): N × A passes, or twice as many."""
    (count, turns), size = angles.shape, _SIZE
    turn = torch.deg2rad(angles.flatten()).to(bases.device)
    cosine, sine = turn.cos() / _MARGIN, turn.sin() / _MARGIN
    zero = torch.zeros_like(turn)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], -1).unflatten(-1, (2, 3))
    grid = F.affine_grid(matrix, [len(turn), 3, size, size], align_corners=False)
    pictures = bases.movedim(-1, 1).repeat_interleave(turns, 0)
    patches = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False).movedim(1, -1)
    found = detector(patches, LEAST)
    if mirrored:
        found += [faces.mirrored(size) for faces in detector(patches.flip(2), LEAST)]
    seen = [_in_the_middle(faces, size) for faces in found]
    stacked = (torch.stack(values) for values in zip(*seen, strict=True))
    return Passes(*(x.unflatten(0, (-1, count, turns)).movedim(0, 1).flatten(1, 2) for x in stacked))


def _in_the_middle(faces: Detections, size: int) -> tuple[Tensor, Tensor]:
    """Score () and landmarks (5, 2) of the most certain face about the middle of a square; score 0 if none."""
    boxes, landmarks = faces.boxes / size - 0.5, faces.landmarks / size - 0.5
    middle = ((boxes[:, :2] + boxes[:, 2:]).abs() < 0.4).all(-1)
    if not middle.any():
        return boxes.new_zeros(()), boxes.new_zeros(5, 2)
    return faces.scores[middle][0], landmarks[middle][0]


def _leans(angles: Tensor, passes: Passes) -> Tensor:
    """(N,) leans from angles (N, A)."""
    return torch.stack([_lean(own, *each) for own, *each in zip(angles, *passes, strict=True)])


def _lean(angles: Tensor, scores: Tensor, landmarks: Tensor) -> Tensor:
    """The angle () at which passes (A,), (A, 5, 2) at `angles` show no lean; NaN if they do not say.

    By a line through the more certain ones, which are those nearer to upright.
    """
    best = scores.topk(len(scores) // 2 + 1).indices
    angles, weight = angles[best], scores[best]
    points = torch.view_as_complex(landmarks[best].contiguous())
    template = torch.view_as_complex(points.real.new_tensor(FFHQ_TEMPLATE))
    shown = torch.rad2deg(((template - template.mean()).conj() * points).sum(-1).angle())
    weight = weight / weight.sum().clamp(min=1e-6)
    angle_mean, shown_mean = (weight * angles).sum(), (weight * shown).sum()
    spread = (weight * (angles - angle_mean) ** 2).sum()
    gain = -(weight * (angles - angle_mean) * (shown - shown_mean)).sum() / spread.clamp(min=1.0)
    lean = angle_mean + shown_mean / gain.clamp(min=_LEAST_GAIN)
    return lean.clamp(-_MAX_LEAN, _MAX_LEAN) if gain >= _LEAST_GAIN else lean * torch.nan
