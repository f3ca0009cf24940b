"""Who acts where and when in a video: as the first frame that the model is shown, and as a picture for the artist."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..dit.region import Box, Region
from ..images import from_pil, label, resize, to_pil
from ..optional_import import require

_SIDE, _GREY = 512, 0.5  # px, as a reference crop's; the value that is 0 where pixels are −1…1
COLOURS = ((230, 85, 75), (70, 140, 230), (245, 190, 65), (90, 185, 110))
_GROUND, _BAR, _GAP = (38, 38, 42), 22, 6  # of a plan; height of a person's bar and what lies around it, px
_CELLS, _LEAST = 64, 0.02  # rows and columns by which places are compared; share of a place from where on they overlap


def arrange(crops: Sequence[Tensor], boxes: Sequence[Box]) -> Tensor:
    """Reference crops (H, W, 3) 0…1, each squeezed into its box of the picture, as the release squeezes one into all.

    Returns:
        (512, 512, 3) float32, grey where nobody is; where boxes overlap the first person is on top.
    """
    canvas = torch.full((_SIDE, _SIDE, 3), _GREY)
    for crop, (left, top, width, height) in reversed(list(zip(crops, boxes, strict=True))):
        x0, x1, y0, y1 = (min(_SIDE, round(_SIDE * at)) for at in (left, left + width, top, top + height))
        if x1 > x0 and y1 > y0:
            canvas[y0:y1, x0:x1] = resize(crop.float().cpu(), y1 - y0, x1 - x0)
    return canvas


def place(region: Region, rows: int, columns: int) -> Tensor:
    """(rows, columns) 0…1, where in the picture a region is, whenever it acts; a mask per frame is averaged."""
    mask = None if region.mask is None else region.mask.float().mean(0, keepdim=True)
    return replace(region, mask=mask, from_second=0.0, to_second=math.inf, fade=0.0).weights(1, rows, columns)[0]


def box_around(region: Region) -> Box:
    """The smallest box around a region's place; that of a black mask is the whole picture."""
    if region.mask is None:
        return region.box or (0.0, 0.0, 1.0, 1.0)
    inside = place(region, _CELLS, _CELLS) >= 0.5
    if not inside.any():
        return (0.0, 0.0, 1.0, 1.0)
    (top, bottom), (left, right) = (_ends(inside.any(along)) for along in (1, 0))
    return left / _CELLS, top / _CELLS, (right - left) / _CELLS, (bottom - top) / _CELLS


def overlaps(regions: Sequence[Region]) -> list[tuple[int, int]]:
    """Pairs of regions, by their numbers from 0, that lie over each other at the same time."""
    places = [place(region, _CELLS, _CELLS) for region in regions]
    found = []
    for second in range(len(regions)):
        for first in range(second):
            a, b = regions[first], regions[second]
            together = min(a.to_second, b.to_second) > max(a.from_second, b.from_second)
            smaller = min(float(places[first].sum()), float(places[second].sum()))
            shared = float(torch.minimum(places[first], places[second]).sum())
            if together and shared > _LEAST * smaller:
                found.append((first, second))
    return found


def draw_plan(regions: Sequence[Region], numbers: Sequence[int], width: int, height: int, seconds: float) -> Tensor:
    """Where people are in the picture, in colours with their numbers, and below it when they act.

    Args:
        numbers: what each is called, from 1.
        width, height: of the picture, px.
        seconds: length of the video, or as far as the bars below reach.

    Returns:
        (H, width, 3) float32 0…1.
    """
    Image, ImageDraw = (require(f"PIL.{name}", "Drawing a plan", "pillow") for name in ("Image", "ImageDraw"))
    colours = [COLOURS[(number - 1) % len(COLOURS)] for number in numbers]
    picture = torch.tensor(_GROUND).div(255).expand(height, width, 3)
    for region, colour in zip(regions, colours, strict=True):
        weight = 0.55 * place(region, height, width)[..., None]
        picture = picture + weight * (torch.tensor(colour) / 255 - picture)
    canvas = Image.new("RGB", (width, height + (_BAR + _GAP) * len(regions) + _BAR + _GAP), _GROUND)
    canvas.paste(to_pil(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (region, number, colour) in enumerate(zip(regions, numbers, colours, strict=True)):
        left, top, across, down = box_around(region)
        corners = (left * width, top * height, (left + across) * width - 1, (top + down) * height - 1)
        draw.rectangle(corners, outline=colour, width=3)
        label(draw, (corners[0] + 8 + 18 * row, corners[1] + 8), f"{number}")
        y = height + _GAP + row * (_BAR + _GAP)
        x0, x1 = (width * min(at, seconds) / seconds for at in (region.from_second, region.to_second))
        draw.rectangle((0, y, width, y + _BAR), fill=(60, 60, 66))
        draw.rectangle((x0, y, max(x0, x1 - 1), y + _BAR), fill=colour)
        label(draw, (x0 + 8, y + 5), f"{number}")
    y = height + _GAP + len(regions) * (_BAR + _GAP)
    for at in range(0, math.ceil(seconds), max(1, round(seconds / 8))):
        draw.text((width * at / seconds + 2, y), f"{at} s", fill=(200, 200, 205))
    return from_pil(canvas)


def _ends(inside: Tensor) -> tuple[int, int]:
    """First and one past the last of where (N,) bool is true."""
    at = inside.nonzero().flatten()
    return int(at[0]), int(at[-1]) + 1
