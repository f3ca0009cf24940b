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
    picture = Image.new("RGB", (WIDTH, HEIGHT), (252, 252, 252))
    axes = _Axes(ImageDraw.Draw(picture), low, high, max(len(values) for values in curves.values()))
    axes.draw_grid(title)
    for name, value in marks.items():
        axes.draw_mark(name, value)
    for (name, values), colour, row in zip(curves.items(), _COLOURS, range(len(_COLOURS)), strict=False):
        axes.draw_curve(values, colour)
        if len(curves) > 1:
            axes.draw.text((WIDTH - _RIGHT - 150, 8 + 12 * row), name, fill=colour)
    return from_pil(picture)


class _Axes:
    """Where frames and values lie in the picture, and what is drawn there."""

    def __init__(self, draw, low: float, high: float, count: int):
        self.draw, self.low, self.high, self.count = draw, low, high, count

    def point(self, frame: float, value: float) -> tuple[float, float]:
        """Px of a frame's value."""
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * (frame / max(self.count - 1, 1))
        return x, _TOP + (HEIGHT - _TOP - _BOTTOM) * (self.high - value) / (self.high - self.low)

    def draw_grid(self, title: str) -> None:
        self.draw.text((_LEFT, 8), title, fill=_INK)
        last = self.count - 1
        for value in torch.linspace(self.low, self.high, 5).tolist():
            (x0, y), (x1, _) = self.point(0, value), self.point(last or 1, value)
            self.draw.line((x0, y, x1 if last else WIDTH - _RIGHT, y), fill=_GRID)
            self.draw.text((8, y - 6), f"{value:.2f}", fill=_INK)
        for frame in sorted({0, last // 2, last}):
            self.draw.text((self.point(frame, self.low)[0] - 4, HEIGHT - _BOTTOM + 8), str(frame), fill=_INK)
        self.draw.text((WIDTH // 2 + 48, HEIGHT - _BOTTOM + 8), "frame", fill=_INK)

    def draw_mark(self, name: str, value: float) -> None:
        x, y = self.point(0, value)
        self.draw.line((x, y, WIDTH - _RIGHT, y), fill=_MARK)
        self.draw.text((x + 4, y - 14), name, fill=_MARK)

    def draw_curve(self, values: Sequence[float], colour: tuple[int, int, int]) -> None:
        points = [self.point(i, v) if math.isfinite(v) else None for i, v in enumerate(values)]
        for a, b in pairwise(points):
            if a and b:
                self.draw.line((*a, *b), fill=colour, width=2)
        for x, y in filter(None, points):
            self.draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
