"""A detector that knows faces of some sizes → faces of all sizes, upright or not, in photos of any size.

Copies of the photo from its own size down to one on which a face that fills it is small enough; large copies in
overlapping tiles, so that memory does not grow with the photo; and turned copies where nothing stands upright.
"""

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from ..images import resize
from .roll import landmarks_upright
from .verify import second_look, turned_back
from .yunet import suppress

Finder = Callable[[Tensor, float], list[Tensor]]
"""(B, H, W, 3) float RGB 0…1 and the least score → B tensors (N, 15) on the CPU, columns as in `yunet.YuNet`."""

# Detectors know faces of about 10 to 300 px.
_COARSEST = 192  # px of the short side, where a face may fill the picture
_RATIO = 4.0  # at most, from one copy to the next
_TILE, _OVERLAP = 1024, 160
_FINEST_PIXELS = 1 << 24
_TURNED_PIXELS = 1 << 20
_CHUNK_PIXELS = 1 << 22
# Below the first a photo is searched turned as well, which must find more than that: what stands upright is likelier.
# Between the two only its faces are looked at turned.
_FOUND, _CERTAIN = 0.8, 0.9
_MAX_DOUBTFUL = 8
_FIRST_LOOK = 0.5  # what is less certain at first is not looked at again


def search(photos: Tensor, find: Finder, min_score: float, device: torch.device | str | None = None) -> list[Tensor]:
    """All faces in photos of one size, a few photos at a time.

    A photo of more than 16 megapixels is reduced to that many first. Turned copies (90°, 180°, 270°, at most 1
    megapixel) are searched only of photos in which no face with a score of at least 0.8 is upright, or one looks
    better turned; the orientation with the most certain face wins.

    Args:
        photos: (B, H, W, 3) float RGB 0…1.
        find: the detector.
        min_score: less certain faces are left out.
        device: where copies are made and searched (default: where the photos are).

    Returns:
        B tensors (N, 15) on the CPU in px of the photo, best score first.
    """
    height, width = photos.shape[1:3]
    chunks = photos.split(max(1, _CHUNK_PIXELS // (height * width)))
    return [rows for chunk in chunks for rows in _search(chunk.to(device or photos.device), find, min_score)]


def _search(photos: Tensor, find: Finder, min_score: float) -> list[Tensor]:
    height, width = photos.shape[1:3]
    found = _upright(photos, find, min_score, _FINEST_PIXELS)
    lying = [i for i, rows in enumerate(found) if _may_lie(photos[i], rows, find)]
    turned: dict[int, int] = {}  # photo → quarter turns after which its faces stand
    small = _reduced(photos[lying], _scale_to(height, width, _TURNED_PIXELS)) if lying else photos[:0]
    if lying:
        for quarters in (1, 2, 3):
            copies = torch.rot90(small, quarters, (1, 2))
            for i, rows in zip(lying, _upright(copies, find, min_score, _TURNED_PIXELS), strict=True):
                if _best(rows) > max(_best(found[i]), _FOUND):
                    found[i], turned[i] = rows, quarters
    for i, rows in enumerate(found):
        if quarters := turned.get(i):
            copy = small[lying.index(i)]
            rows = landmarks_upright(torch.rot90(copy, quarters), rows, find)
            found[i] = _stretched(turned_back(rows, quarters, *copy.shape[:2]), copy[None], photos)
        else:
            found[i] = landmarks_upright(photos[i], rows, find)
    return found


def _may_lie(photo: Tensor, rows: Tensor, find: Finder) -> bool:
    """Nothing is certain upright, or some is more certain turned: detectors see upside-down faces as upright ones."""
    if not _FOUND <= _best(rows) < _CERTAIN:
        return _best(rows) < _FOUND
    doubtful = rows[:_MAX_DOUBTFUL]
    return any(
        bool((second_look(photo, doubtful, find, quarters)[:, 14] > doubtful[:, 14].clamp(min=_FOUND)).any())
        for quarters in (1, 2, 3)
    )


def _best(rows: Tensor) -> float:
    return float(rows[0, 14]) if len(rows) else 0.0


def _upright(photos: Tensor, find: Finder, min_score: float, finest_pixels: int) -> list[Tensor]:
    """Faces that stand upright or nearly so, from copies of all scales, looked at twice."""
    height, width = photos.shape[1:3]
    finest = _scale_to(height, width, finest_pixels)
    coarsest = min(finest, _COARSEST / min(height, width))
    steps = math.ceil(math.log(finest / coarsest, _RATIO)) if coarsest < finest else 0
    found: list[list[Tensor]] = [[] for _ in photos]
    for step in range(steps + 1):
        scale = finest * (coarsest / finest) ** (step / max(steps, 1))
        copies = _reduced(photos, scale)
        for own, rows in zip(found, _in_tiles(copies, find, min(min_score, _FIRST_LOOK)), strict=True):
            own.append(_stretched(rows, copies, photos))
    # A face too large for a copy shows up there as pieces: drop what lies half inside a more certain box.
    candidates = [suppress(torch.cat(rows), overlap=0.5, of_smaller=True) for rows in found]
    certain = [second_look(photo, rows, find) for photo, rows in zip(photos, candidates, strict=True)]
    return [suppress(rows[rows[:, 14] >= min_score], overlap=0.5, of_smaller=True) for rows in certain]


def _scale_to(height: int, width: int, pixels: int) -> float:
    return min(1.0, math.sqrt(pixels / (height * width)))


def _reduced(photos: Tensor, scale: float) -> Tensor:
    height, width = photos.shape[1:3]
    return resize(photos, max(1, round(height * scale)), max(1, round(width * scale)))


def _stretched(rows: Tensor, copies: Tensor, photos: Tensor) -> Tensor:
    """Rows in px of a reduced copy → px of the photo."""
    ratio = rows.new_tensor([photos.shape[2] / copies.shape[2], photos.shape[1] / copies.shape[1]])
    return torch.cat([rows[:, :14] * ratio.repeat(7), rows[:, 14:]], 1)


def _in_tiles(photos: Tensor, find: Finder, min_score: float) -> list[Tensor]:
    """`find`, a few tiles at a time. What an inner edge of a tile cuts is whole in the next tile or a coarser copy."""
    height, width = photos.shape[1:3]
    if height * width <= _TILE * _TILE:
        return find(photos, min_score)
    found: list[list[Tensor]] = [[] for _ in photos]
    for (y0, y1), (x0, x1) in product(_spans(height), _spans(width)):
        for own, rows in zip(found, find(photos[:, y0:y1, x0:x1], min_score), strict=True):
            inner = rows.new_tensor([x0 > 0, y0 > 0, x1 < width, y1 < height]).bool()
            edge = rows.new_tensor([0, 0, x1 - x0, y1 - y0])
            beyond = torch.cat([rows[:, :2] <= edge[:2] + 1, rows[:, 2:4] >= edge[2:] - 1], 1)
            rows = rows[~(beyond & inner).any(-1)]
            own.append(torch.cat([rows[:, :14] + rows.new_tensor([x0, y0]).repeat(7), rows[:, 14:]], 1))
    return [torch.cat(rows) for rows in found]


def _spans(length: int) -> list[tuple[int, int]]:
    """Overlapping spans of at most a tile that cover 0…length evenly."""
    count = max(1, math.ceil((length - _OVERLAP) / (_TILE - _OVERLAP)))
    size = math.ceil((length + (count - 1) * _OVERLAP) / count)
    return [(start, min(start + size, length)) for start in (i * (size - _OVERLAP) for i in range(count))]
