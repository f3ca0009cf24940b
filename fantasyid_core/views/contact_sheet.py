"""All views of a person in one picture, each with its pose, score and origin."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import from_pil, label, resize, to_pil
from ..optional_import import require
from .collection import FaceViews


def contact_sheet(views: FaceViews, columns: int = 4, size: int = 256) -> Tensor:
    """All views in rows of at most `columns`, each `size` px wide.

    At the top of each its number, score and origin; at the bottom its yaw and pitch in degrees, where known.

    Returns:
        (rows · size, columns · size, 3) float32 0…1 on the CPU.
    """
    ImageDraw = require("PIL.ImageDraw", "Drawing a contact sheet", "pillow")
    count = len(views.crops)
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    tiles = torch.stack([resize(crop, size, size) for crop in views.crops])
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, rows * columns - count))
    sheet = tiles.unflatten(0, (rows, columns)).transpose(1, 2).reshape(rows * size, columns * size, 3)
    picture = to_pil(sheet)
    draw = ImageDraw.Draw(picture)
    origins = views.origins or ("",) * count
    for i, (score, origin) in enumerate(zip(views.scores.tolist(), origins, strict=True)):
        x, y = i % columns * size, i // columns * size
        label(draw, (x + 6, y + 6), "  ".join(filter(None, (f"{i}", f"{score:.2f}", origin, "" if i else "reference"))))
        if views.poses is not None:
            label(draw, (x + 6, y + size - 18), pose_text(views.poses[i]))
    return from_pil(picture)


def pose_text(pose: Tensor) -> str:
    """(≥ 2,) degrees → such as 'yaw +20  pitch -5'. The default font of Pillow knows no degree sign everywhere."""
    yaw, pitch = (round(angle) for angle in pose[:2].tolist())
    return f"yaw {yaw:+d}  pitch {pitch:+d}"
