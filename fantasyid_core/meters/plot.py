"""A small line chart of one value per frame, drawn with Pillow."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..images import from_pil
from ..optional_import import require

WIDTH, HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 34, 34
_INK, _GRID, _MARK = (40, 40, 48), (214, 214, 220), (190, 60, 50)
_COLOURS = ((38, 84, 190), (214, 112, 20), (46, 140, 62))


def chart(
    title: str,
    curves: Mapping[str, Sequence[float]],
    low: float,
    high: float,
    marks: Mapping[str, float] | None = None,
) -> Tensor:
    """Values by frame as curves; a frame that is NaN leaves a gap.

    Args:
        curves: by name, T values each.
        low, high: the axis; made wider where values lie outside.
        marks: horizontal lines by name.

    Returns:
        (320, 640, 3) float32 0…1 on the CPU.
    """
    Image = require("PIL.Image", "Drawing a plot", "pillow")
    ImageDraw = require("PIL.ImageDraw", "Drawing a plot", "pillow")
    marks = marks or {}
    curves = {name: [float(v) for v in values] for name, values in curves.items()}
    shown = [v for values in curves.values() for v in values if math.isfinite(v)]
    low, high = min([low, *shown]), max([high, *shown])
    high = high if high > low else low + 1
    count = max(len(values) for values in curves.values())
    picture = Image.new("RGB", (WIDTH, HEIGHT), (252, 252, 252))
    draw = ImageDraw.Draw(picture)

    def place(frame: float, value: float) -> tuple[float, float]:
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * (frame / max(count - 1, 1))
        return x, _TOP + (HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    draw.text((_LEFT, 8), title, fill=_INK)
    for value in torch.linspace(low, high, 5).tolist():
        (x0, y), (x1, _) = place(0, value), place(count - 1 or 1, value)
        draw.line((x0, y, x1 if count > 1 else WIDTH - _RIGHT, y), fill=_GRID)
        draw.text((8, y - 6), f"{value:.2f}", fill=_INK)
    for frame in sorted({0, (count - 1) // 2, count - 1}):
        draw.text((place(frame, low)[0] - 4, HEIGHT - _BOTTOM + 8), str(frame), fill=_INK)
    draw.text((WIDTH // 2 + 24, HEIGHT - _BOTTOM + 8), "frame", fill=_INK)
    for name, value in marks.items():
        (x0, y), x1 = place(0, value), WIDTH - _RIGHT
        draw.line((x0, y, x1, y), fill=_MARK)
        draw.text((x0 + 4, y - 14), name, fill=_MARK)
    for (name, values), colour, row in zip(curves.items(), _COLOURS, range(len(_COLOURS)), strict=False):
        points = [place(i, v) if math.isfinite(v) else None for i, v in enumerate(values)]
        for a, b in pairwise(points):
            if a and b:
                draw.line((*a, *b), fill=colour, width=2)
        for point in points:
            if point:
                x, y = point
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        if len(curves) > 1:
            draw.text((WIDTH - _RIGHT - 150, 8 + 12 * row), name, fill=colour)
    return from_pil(picture)
