"""Help pictures laid out: stages of pictures and texts with captions, from left to right with arrows between."""

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fantasyid_core.images import to_pil

WIDTH, GAP, ARROW, LINE = 640, 8, 40, 16  # px
GROUND, INK, BOX = (32, 33, 36), (220, 220, 224), (58, 62, 70)


@dataclass(frozen=True)
class Stage:
    """Pictures, or texts in boxes, with their captions.

    Attributes:
        across: how many stand side by side.
        wide: share of the picture's width, against the other stages'.
    """

    items: tuple[tuple[Tensor | Image.Image | str, str], ...]
    across: int = 1
    wide: int = 1


def stage(*items: tuple[Tensor | Image.Image | str, str], across: int = 1, wide: int = 0) -> Stage:
    """A `Stage`, by default as wide as it has items across."""
    return Stage(items, across, wide or across)


def font(size: int = 13) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own."""
    return ImageFont.load_default(size)


def tile(content: Tensor | Image.Image | str, caption: str, width: int) -> Image.Image:
    """One item, `width` px wide."""
    if isinstance(content, str):
        lines = content.splitlines()
        picture = Image.new("RGB", (width, 12 + LINE * len(lines)), BOX)
        ImageDraw.Draw(picture).multiline_text((8, 4), content, fill=INK, font=font(), spacing=3)
    else:
        picture = (to_pil(content) if isinstance(content, Tensor) else content).convert("RGB")
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    if not caption:
        return picture
    whole = Image.new("RGB", (width, picture.height + LINE + 2), GROUND)
    whole.paste(picture)
    ImageDraw.Draw(whole).text((0, picture.height + 1), caption, fill=INK, font=font(12))
    return whole


def laid_out(part: Stage, width: int) -> Image.Image:
    """One stage, `width` px wide."""
    each = (width - GAP * (part.across - 1)) // part.across
    tiles = [tile(content, caption, each) for content, caption in part.items]
    rows = [tiles[i : i + part.across] for i in range(0, len(tiles), part.across)]
    heights = [max(one.height for one in row) for row in rows]
    picture = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) - 1)), GROUND)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for i, one in enumerate(row):
            picture.paste(one, (i * (each + GAP), top))
        top += height + GAP
    return picture


def flow(*stages: Stage) -> Image.Image:
    """Stages from left to right with arrows between."""
    inner = WIDTH - 2 * GAP - ARROW * (len(stages) - 1)
    shares = [part.wide for part in stages]
    parts = [laid_out(part, inner * share // sum(shares)) for part, share in zip(stages, shares, strict=True)]
    picture = Image.new("RGB", (WIDTH, max(part.height for part in parts) + 2 * GAP), GROUND)
    draw, left, middle = ImageDraw.Draw(picture), GAP, picture.height // 2
    for i, part in enumerate(parts):
        picture.paste(part, (left, (picture.height - part.height) // 2))
        left += part.width + ARROW
        if i + 1 < len(parts):
            draw.line((left - ARROW + 8, middle, left - 10, middle), fill=INK, width=2)
            draw.polygon([(left - 8, middle), (left - 16, middle - 5), (left - 16, middle + 5)], fill=INK)
    return picture
