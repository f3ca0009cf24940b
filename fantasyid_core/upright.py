"""Landmarks of faces that lean: the detector's are right on an upright face only.

YuNet puts the landmarks of a face that leans by 20° as if it leaned by 4° to 9° (measured: docs/detection.md). So the
surroundings are turned by several angles; the angle at which the landmarks would show no lean is the face's own, and a
last look at that angle finds them where they are.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .alignment import FFHQ_TEMPLATE
from .images import resize
from .second_look import AROUND, LEAST, mirror

# Degrees. On the larger picture, where the face has about 144 px, the landmarks follow the lean most.
_COARSE, _FINE = (-40.0, -20.0, 0.0, 20.0, 40.0), (-12.0, 12.0)
_SMALL, _LARGE = 192, 288
_MARGIN = 1.5  # a turned square of the surroundings fits into one this much larger
_MAX_LEAN = 60.0
_LEAST_GAIN = 0.1  # degrees of lean in the landmarks for one of the face; less is noise


def landmarks_upright(photo: Tensor, rows: Tensor, find: Callable[[Tensor, float], list[Tensor]]) -> Tensor:
    """Candidates (N, 15) of `second_look` with better landmarks, and the score of the last look where that is higher.

    Args:
        photo: (H, W, 3) float RGB 0…1.
        rows: (N, 15) px; faces that stand within about 50° of upright.
        find: the detector, see `search.Finder`.
    """
    if not len(rows):
        return rows
    centres = (rows[:, :2] + rows[:, 2:4]) / 2
    sides = (rows[:, 2:4] - rows[:, :2]).amax(-1).clamp(min=1) * AROUND
    squares = [_square(photo, *place) for place in zip(centres.tolist(), sides.tolist(), strict=True)]
    bases = torch.stack([resize(square, int(_LARGE * _MARGIN), int(_LARGE * _MARGIN)) for square in squares])

    lean = rows.new_zeros(len(rows))
    for size, steps, mirrored in ((_SMALL, _COARSE, False), (_LARGE, _FINE, True)):
        angles = lean[:, None] + rows.new_tensor(steps)
        looks = _look(bases, angles, size, find, mirrored)
        lean = torch.stack(list(map(_lean, angles.repeat(1, 1 + mirrored), looks, lean)))
    last = _look(bases, lean[:, None], _LARGE, find, mirrored=True)

    weight = last[..., 14:]
    points = ((last[..., 4:14] * weight).sum(1) / weight.sum(1).clamp(min=1e-6)).unflatten(1, (5, 2))
    cosine, sine = torch.deg2rad(lean).cos()[:, None], torch.deg2rad(lean).sin()[:, None]
    x, y = points.unbind(-1)
    turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
    landmarks = (turned * sides[:, None, None] + centres[:, None]).flatten(1)
    score = weight.mean((1, 2))
    better = (score > 0.8 * rows[:, 14])[:, None]
    landmarks = torch.where(better, landmarks, rows[:, 4:14])
    return torch.cat([rows[:, :4], landmarks, torch.maximum(score, rows[:, 14])[:, None]], 1)


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


def _look(bases: Tensor, angles: Tensor, size: int, find: Callable, mirrored: bool = False) -> Tensor:
    """Faces in the middle of squares (N, b, b, 3), each turned by angles (N, A) → (N, A or 2 A, 15).

    Coordinates are from the middle of the turned square, in its sides; the score is 0 where nothing was found.
    """
    count, turns = angles.shape
    turn = torch.deg2rad(angles.flatten()).to(bases.device)
    cosine, sine = turn.cos() / _MARGIN, turn.sin() / _MARGIN
    zero = torch.zeros_like(turn)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], -1).unflatten(-1, (2, 3))
    grid = F.affine_grid(matrix, (len(turn), 3, size, size), align_corners=False)
    reduced = resize(bases, round(size * _MARGIN), round(size * _MARGIN))
    pictures = reduced.movedim(-1, 1).repeat_interleave(turns, 0)
    patches = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False).movedim(1, -1)
    found = find(patches, LEAST)
    if mirrored:
        found += [mirror(rows, size) for rows in find(patches.flip(2), LEAST)]
    middle = torch.stack([_in_the_middle(rows, size) for rows in found])
    return middle.unflatten(0, (-1, count, turns)).movedim(0, 1).flatten(1, 2)


def _in_the_middle(rows: Tensor, size: int) -> Tensor:
    """The most certain of the rows about the middle of a square picture, (15,) in its sides; score 0 if none."""
    rows = torch.cat([rows[:, :14] / size - 0.5, rows[:, 14:]], 1)
    rows = rows[((rows[:, :2] + rows[:, 2:4]).abs() < 0.4).all(-1)]
    return rows[0] if len(rows) else rows.new_zeros(15)


def _lean(angles: Tensor, looks: Tensor, otherwise: Tensor) -> Tensor:
    """The angle () at which looks (A, 15) at `angles` show no lean: a line through the more certain half."""
    best = looks[:, 14].topk(len(looks) // 2 + 1).indices
    points = looks[best, 4:14].unflatten(1, (5, 2)).contiguous()
    template = torch.view_as_complex(points.new_tensor(FFHQ_TEMPLATE))
    shown = torch.rad2deg(((template - template.mean()).conj() * torch.view_as_complex(points)).sum(-1).angle())
    angle, weight = angles[best], looks[best, 14]
    if not bool((weight > 0).all()):
        return otherwise
    weight = weight / weight.sum()
    angle_mean, shown_mean = (weight * angle).sum(), (weight * shown).sum()
    gain = -(weight * (angle - angle_mean) * (shown - shown_mean)).sum() / (weight * (angle - angle_mean) ** 2).sum()
    return (angle_mean + shown_mean / gain.clamp(min=_LEAST_GAIN)).clamp(-_MAX_LEAN, _MAX_LEAN)
