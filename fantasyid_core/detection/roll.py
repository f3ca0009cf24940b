"""Landmarks of faces that lean: the detector's are right on an upright face only.

YuNet puts the landmarks of a face that leans by 20° as if it leaned by 4° to 9° (measured: docs/detection.md). So the
surroundings are turned by several angles; the angle at which the landmarks would show no lean is the face's own, and a
last look at that angle finds them where they are.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import resize
from .alignment import FFHQ_TEMPLATE
from .verify import AROUND, LEAST, mirror

_COARSE, _FINE = (-40.0, -20.0, 0.0, 20.0, 40.0), (-12.0, 12.0)  # degrees
_SIZE = 288  # px of the surroundings: where the face has 144 px its landmarks follow the lean most
_MARGIN = 1.5  # a turned square of the surroundings fits into one this much larger
_MAX_LEAN = 60.0
# Degrees of lean in the landmarks for one of the face: 0.3 to 0.9 on people, about 0 on dolls, animals and drawings,
# whose landmarks stay as they are.
_LEAST_GAIN = 0.25


def landmarks_upright(photo: Tensor, rows: Tensor, find: Callable[[Tensor, float], list[Tensor]]) -> Tensor:
    """Faces (N, 15) with better landmarks, or their own where the last look does not show them.

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
    bases = torch.stack([resize(square, round(_SIZE * _MARGIN), round(_SIZE * _MARGIN)) for square in squares])

    angles = rows.new_tensor(_COARSE).repeat(len(rows), 1)
    looks = _look(bases, angles, find, mirrored=False)
    coarse = torch.stack(list(map(_lean, angles, looks)))
    likeliest = angles.gather(1, looks[..., 14].argmax(1, keepdim=True))[:, 0]
    angles = torch.where(coarse.isnan(), likeliest, coarse)[:, None] + rows.new_tensor(_FINE)
    fine = torch.stack(list(map(_lean, angles.repeat(1, 2), _look(bases, angles, find, mirrored=True))))
    lean = torch.where(fine.isnan(), coarse, fine).nan_to_num(0)
    last = _look(bases, lean[:, None], find, mirrored=True)

    weight = last[..., 14:]
    points = ((last[..., 4:14] * weight).sum(1) / weight.sum(1).clamp(min=1e-6)).unflatten(1, (5, 2))
    cosine, sine = torch.deg2rad(lean).cos()[:, None], torch.deg2rad(lean).sin()[:, None]
    x, y = points.unbind(-1)
    turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
    landmarks = (turned * sides[:, None, None] + centres[:, None]).flatten(1)
    seen = (weight.mean((1, 2)) > 0.8 * rows[:, 14])[:, None]
    return torch.cat([rows[:, :4], torch.where(seen, landmarks, rows[:, 4:14]), rows[:, 14:]], 1)


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


def _look(bases: Tensor, angles: Tensor, find: Callable, mirrored: bool) -> Tensor:
    """Faces in the middle of squares (N, b, b, 3), each turned by angles (N, A) → (N, A or 2 A, 15).

    Coordinates are from the middle of the turned square, in its sides; the score is 0 where nothing was found.
    """
    (count, turns), size = angles.shape, _SIZE
    turn = torch.deg2rad(angles.flatten()).to(bases.device)
    cosine, sine = turn.cos() / _MARGIN, turn.sin() / _MARGIN
    zero = torch.zeros_like(turn)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], -1).unflatten(-1, (2, 3))
    grid = F.affine_grid(matrix, [len(turn), 3, size, size], align_corners=False)
    pictures = bases.movedim(-1, 1).repeat_interleave(turns, 0)
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


def _lean(angles: Tensor, looks: Tensor) -> Tensor:
    """The angle () at which looks (A, 15) at `angles` show no lean; NaN if they do not say.

    By a line through the more certain ones, which are those nearer to upright.
    """
    best = looks[:, 14].topk(len(looks) // 2 + 1).indices
    angles, looks = angles[best], looks[best]
    weight = looks[:, 14]
    points = torch.view_as_complex(looks[:, 4:14].unflatten(1, (5, 2)).contiguous())
    template = torch.view_as_complex(points.real.new_tensor(FFHQ_TEMPLATE))
    shown = torch.rad2deg(((template - template.mean()).conj() * points).sum(-1).angle())
    weight = weight / weight.sum().clamp(min=1e-6)
    angle_mean, shown_mean = (weight * angles).sum(), (weight * shown).sum()
    spread = (weight * (angles - angle_mean) ** 2).sum()
    gain = -(weight * (angles - angle_mean) * (shown - shown_mean)).sum() / spread.clamp(min=1.0)
    lean = angle_mean + shown_mean / gain.clamp(min=_LEAST_GAIN)
    return lean.clamp(-_MAX_LEAN, _MAX_LEAN) if gain >= _LEAST_GAIN else lean * torch.nan
