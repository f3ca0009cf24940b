"""Reports of pictures: per person the reference, frames of the video and of the true render."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fantasyid_core.images import from_pil, label, resize, to_pil
from fantasyid_core.optional_import import require

FRAMES_SHOWN = 5
_GAP = 4


@dataclass(frozen=True, eq=False)
class Line:
    """One person of a report.

    Attributes:
        reference: (h, w, 3) float 0…1, the photo or its face crop.
        video: (T, H, W, 3) float 0…1 or uint8.
        truth: (T, H, W, 3) likewise, or None where there is no truth, as for real photos.
        title: short text, written on the reference.
    """

    reference: Tensor
    video: Tensor
    truth: Tensor | None
    title: str


def draw_report(lines: Sequence[Line], size: int = 128) -> Tensor:
    """Lines below one another: reference | five frames of the video | five of the truth.

    Returns:
        (h, w, 3) float32 0…1 on the CPU.
    """
    ImageDraw = require("PIL.ImageDraw", "Drawing a report", "pillow")
    with_truth = any(line.truth is not None for line in lines)
    rows = [_row(line, size, with_truth) for line in lines]
    picture = to_pil(torch.cat(rows))
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        label(draw, (4, i * (size + _GAP) + 4), line.title)
    return from_pil(picture)


def _row(line: Line, size: int, with_truth: bool) -> Tensor:
    groups = [[_square(_float(line.reference), size)], _chosen(line.video, size)]
    if with_truth:
        groups.append([torch.ones(size, size, 3)] * FRAMES_SHOWN if line.truth is None else _chosen(line.truth, size))
    gap = torch.ones(size, _GAP, 3)
    parts = [part for group in groups for part in (torch.cat(group, 1), gap)][:-1]
    row = torch.cat(parts, 1)
    return torch.cat([row, torch.ones(_GAP, row.shape[1], 3)])


def _chosen(video: Tensor, size: int) -> list[Tensor]:
    places = torch.linspace(0, len(video) - 1, FRAMES_SHOWN).round().long()
    return [_square(_float(video[place]), size) for place in places]


def _float(picture: Tensor) -> Tensor:
    return (picture.float() / 255 if picture.dtype == torch.uint8 else picture.float()).cpu()


def _square(picture: Tensor, size: int) -> Tensor:
    """The middle square of (h, w, 3), `size` px wide."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(picture[top : top + side, left : left + side], size, size)
