"""Several photos or a video's frames of one person → a small collection of face crops (paper, section 3.1).

The plain form: of every frame the largest face, ranked by the detector's certainty, near-duplicates dropped. It does
not compare identities: all photos must be of the person in the reference.
"""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .detection import DetectedFace, detect
from .errors import FaceNotFoundError, ImageError
from .images import from_pil, label, resize, to_pil
from .optional import require
from .selection import select

log = logging.getLogger(__name__)

_THUMBNAIL = 32
# Mean absolute difference of two thumbnails below which the crops show the same: neighbours in a video at rest.
_SAME = 0.02


@dataclass(frozen=True, eq=False)
class FaceViews:
    """Views of one person.

    Attributes:
        crops: (N, 512, 512, 3) float32 0…1, FFHQ-aligned, N ≥ 1; the first is the reference.
        scores: (N,) float32 0…1; after the reference the best comes first.
    """

    crops: Tensor
    scores: Tensor


def collect(
    reference: DetectedFace,
    images: Tensor | None = None,
    max_views: int = 8,
    *,
    min_score: float = 0.6,
    device: torch.device | str | None = None,
) -> FaceViews:
    """The reference and the best of the faces in further photos or frames, at most `max_views` in all.

    Args:
        images: (B, H, W, C) or None. A frame without a usable face is skipped, and how many were is logged.
        max_views: 1 keeps the reference alone.
        min_score, device: as for `detection.detect`.

    Raises:
        ImageError: `images` is not a batch of pictures, or one of them cannot be used.
    """
    if max_views < 1:
        raise ImageError(f"max_views is {max_views}; expected at least 1, the reference.")
    if images is not None and images.ndim != 4:
        raise ImageError(
            f"The images have shape {tuple(images.shape)}; expected a batch (frames, height, width, channels)."
        )

    own = _thumbnail(reference.crop)
    kept: list[_View] = []
    skipped = 0
    for image in images if images is not None and max_views > 1 else ():
        try:
            face = select(detect(image, min_score=min_score, device=device))
        except FaceNotFoundError:
            skipped += 1
            continue
        crop = face.crop.to(reference.crop)
        kept = _add(kept, _View(crop, face.score, _thumbnail(crop)), own)[: max_views - 1]
    if skipped:
        log.info("FantasyID: no usable face in %d of %d frames; they were skipped.", skipped, len(images))
    crops = torch.stack([reference.crop, *(view.crop for view in kept)])
    return FaceViews(crops, crops.new_tensor([reference.score, *(view.score for view in kept)]))


class _View(NamedTuple):
    crop: Tensor
    score: float
    thumbnail: Tensor


def _add(kept: list[_View], view: _View, own: Tensor) -> list[_View]:
    """`kept` with `view`, best first, unless the reference or a better one shows the same; worse ones that do go."""

    def same(thumbnail: Tensor) -> bool:
        return bool((thumbnail - view.thumbnail).abs().mean() < _SAME)

    twins = [other for other in kept if same(other.thumbnail)]
    if same(own) or any(twin.score >= view.score for twin in twins):
        return kept
    different = [other for other in kept if all(other is not twin for twin in twins)]
    return sorted([*different, view], key=lambda other: -other.score)


def _thumbnail(crop: Tensor) -> Tensor:
    """The middle half of a crop, the face without most of its background, as (32, 32, 3)."""
    quarter = crop.shape[0] // 4
    return resize(crop[quarter:-quarter, quarter:-quarter], _THUMBNAIL, _THUMBNAIL)


def contact_sheet(views: FaceViews, columns: int = 4, size: int = 256) -> Tensor:
    """All views in rows of at most `columns`, each `size` px wide, labelled with its index and score.

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
    for i, score in enumerate(views.scores.tolist()):
        text = f"{i}  {score:.2f}" + ("  reference" if i == 0 else "")
        label(draw, (i % columns * size + 6, i // columns * size + 6), text)
    return from_pil(picture)
