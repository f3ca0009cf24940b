"""A face that a detector found once → certain or not: its surroundings at other sizes, and mirrored, are searched too.

A face is found in all of them, at nearly the same place; what only looks like one at one size and place is not
(measured: docs/detection.md). The mean of what is found is the better box and landmarks as well.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import resize

MAX_CANDIDATES = 64
SIZES = (128, 224)  # px of the surroundings, of which the face is about half
AROUND = 2.0
LEAST = 0.1
_SAME = 0.3  # intersection over union
_MIRRORED = (1, 0, 2, 4, 3)  # the five landmarks' names in a mirror


def second_look(
    photo: Tensor, rows: Tensor, find: Callable[[Tensor, float], list[Tensor]], quarters: int = 0
) -> Tensor:
    """Candidates with the mean box, landmarks and score of four looks; a look that misses one counts as score 0.

    Args:
        photo: (H, W, 3) float RGB 0…1.
        rows: (N, 15) as `find` returns them, best score first; all but the first 64 are left out.
        find: the detector, see `search.Finder`.
        quarters: turns of 90° by which the surroundings are turned, see `torch.rot90`.
    """
    rows = rows[:MAX_CANDIDATES]
    if not len(rows):
        return rows
    within = rows.new_tensor([photo.shape[1], photo.shape[0]])
    sides = ((rows[:, 2:4] - rows[:, :2]).amax(-1) * AROUND).clamp(1, float(within.max()))
    origins = (rows[:, :2] + rows[:, 2:4] - sides[:, None]) / 2
    # Inside the photo as far as it fits: black beside a face that fills the picture would hide it.
    room = within - sides[:, None]
    origins = torch.where(room > 0, origins.clamp(min=0).minimum(room), room / 2)
    seen: list[list[Tensor]] = [[] for _ in rows]
    for size in SIZES:
        around = [_surroundings(photo, *place, size) for place in zip(origins.tolist(), sides.tolist(), strict=True)]
        around = torch.rot90(torch.stack(around), quarters, (1, 2))
        looks = find(torch.cat([around, around.flip(2)]), LEAST)
        for i, row in enumerate(rows):
            scale = sides[i] / size
            for found in (looks[i], mirror(looks[i + len(rows)], size)):
                upright = turned_back(found, quarters, size, size)
                places = upright[:, :14] * scale + origins[i].repeat(7)
                seen[i].append(_match(row, torch.cat([places, upright[:, 14:]], 1)))
    return torch.stack([_mean(torch.cat(looks)) for looks in seen])


def _surroundings(photo: Tensor, origin: list[float], side: float, size: int) -> Tensor:
    """The square of a photo from `origin`, black outside of it, as (size, size, 3)."""
    height, width = photo.shape[:2]
    x0, y0 = round(origin[0]), round(origin[1])
    x1, y1 = x0 + max(1, round(side)), y0 + max(1, round(side))
    part = photo[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    outside = (0, 0, max(-x0, 0), max(x1 - width, 0), max(-y0, 0), max(y1 - height, 0))
    return resize(F.pad(part, outside), size, size)


def mirror(rows: Tensor, size: int) -> Tensor:
    """Rows (N, 15) in px of a mirrored square picture → px of the picture itself."""
    points = rows[:, :14].unflatten(-1, (7, 2))
    x, y = size - points[..., 0], points[..., 1]
    box = torch.stack([x[:, 1], y[:, 0], x[:, 0], y[:, 1]], -1)
    landmarks = torch.stack([x, y], -1)[:, 2:][:, list(_MIRRORED)]
    return torch.cat([box, landmarks.flatten(1), rows[:, 14:]], 1)


def _match(row: Tensor, found: Tensor) -> Tensor:
    """The best (1, 15) of `found` at the place of `row`, or `row` with score 0."""
    shared = (torch.minimum(row[2:4], found[:, 2:4]) - torch.maximum(row[:2], found[:, :2])).clamp(min=0).prod(-1)
    whole = (row[2:4] - row[:2]).prod() + (found[:, 2:4] - found[:, :2]).prod(-1) - shared
    same = found[shared > _SAME * whole]
    return same[:1] if len(same) else torch.cat([row[None, :14], row.new_zeros(1, 1)], 1)


def _mean(looks: Tensor) -> Tensor:
    """Mean of the looks (4, 15), weighted by their scores; the score itself is their plain mean."""
    weight = (looks[:, 14:] + 1e-6) / (looks[:, 14:] + 1e-6).sum()
    return torch.cat([(looks[:, :14] * weight).sum(0), looks[:, 14].mean()[None]])


def turned_back(rows: Tensor, quarters: int, height: int, width: int) -> Tensor:
    """Rows (N, 15) in px of `rot90(photo, quarters)` → px of the photo, which has that height and width."""
    if not quarters:
        return rows
    points = rows[:, :14].unflatten(-1, (7, 2))
    x, y = points.unbind(-1)
    x, y = {1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[quarters]
    points = torch.stack([x, y], -1)
    corners = points[:, :2]
    return torch.cat([corners.amin(1), corners.amax(1), points[:, 2:].flatten(1), rows[:, 14:]], 1)
