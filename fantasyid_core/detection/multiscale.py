"""A detector that knows faces of some sizes → faces of all sizes, upright or not, in photos of any size.

Copies of the photo from its own size down to one on which a face that fills it is small enough; large copies in
overlapping tiles, so that memory does not grow with the photo; and turned copies where nothing stands upright.
"""

import math
from itertools import product

import torch
from torch import Tensor

from ..images import resize
from .detections import Detections, Detector, nms
from .roll import derotate_landmarks
from .verify import verify

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


def search(
    photos: Tensor, detector: Detector, min_score: float, device: torch.device | str | None = None
) -> list[Detections]:
    """All faces in photos of one size, a few photos at a time.

    A photo of more than 16 megapixels is reduced to that many first. Turned copies (90°, 180°, 270°, at most 1
    megapixel) are searched only of photos in which no face with a score of at least 0.8 is upright, or one looks
    better turned; the orientation with the most certain face wins.

    Args:
        photos: (B, H, W, 3) float RGB 0…1.
        detector: searches copies, tiles and surroundings of faces.
        min_score: less certain faces are left out.
        device: where copies are made and searched (default: where the photos are).

    Returns:
        Of each photo, on the CPU, best score first.
    """
    height, width = photos.shape[1:3]
    chunks = photos.split(max(1, _CHUNK_PIXELS // (height * width)))
    return [faces for chunk in chunks for faces in _search(chunk.to(device or photos.device), detector, min_score)]


def _search(photos: Tensor, detector: Detector, min_score: float) -> list[Detections]:
    upright = _search_upright(photos, detector, min_score, _FINEST_PIXELS)
    lying = [i for i, faces in enumerate(upright) if _may_lie(photos[i], faces, detector)]
    turned: dict[int, Detections | None] = {}
    if lying:
        scores = [upright[i].best_score for i in lying]
        turned = dict(zip(lying, _search_turned(photos[lying], scores, detector, min_score), strict=True))
    return [turned.get(i) or derotate_landmarks(photos[i], faces, detector) for i, faces in enumerate(upright)]


def _search_upright(photos: Tensor, detector: Detector, min_score: float, finest_pixels: int) -> list[Detections]:
    """Faces that stand upright or nearly so, from copies of all scales, verified."""
    height, width = photos.shape[1:3]
    finest = _scale_to(height, width, finest_pixels)
    coarsest = min(finest, _COARSEST / min(height, width))
    steps = math.ceil(math.log(finest / coarsest, _RATIO)) if coarsest < finest else 0
    candidates: list[list[Detections]] = [[] for _ in photos]
    for step in range(steps + 1):
        copies = _reduced(photos, finest * (coarsest / finest) ** (step / max(steps, 1)))
        for own, found in zip(candidates, _detect_in_tiles(copies, detector, min(min_score, _FIRST_LOOK)), strict=True):
            own.append(_stretched(found, copies, photos))
    return [_verified(photo, own, detector, min_score) for photo, own in zip(photos, candidates, strict=True)]


def _verified(photo: Tensor, candidates: list[Detections], detector: Detector, min_score: float) -> Detections:
    # A face too large for a copy shows up there as pieces: drop what lies half inside a more certain box.
    apart = nms(Detections.cat(candidates), overlap=0.5, of_smaller=True)
    faces = verify(photo, apart, detector)
    return nms(faces[faces.scores >= min_score], overlap=0.5, of_smaller=True)


def _may_lie(photo: Tensor, faces: Detections, detector: Detector) -> bool:
    """Nothing is certain upright, or some is more certain turned: detectors see upside-down faces as upright ones."""
    if not _FOUND <= faces.best_score < _CERTAIN:
        return faces.best_score < _FOUND
    doubtful = faces[:_MAX_DOUBTFUL]
    return any(
        bool((verify(photo, doubtful, detector, quarters).scores > doubtful.scores.clamp(min=_FOUND)).any())
        for quarters in (1, 2, 3)
    )


def _search_turned(
    photos: Tensor, scores: list[float], detector: Detector, min_score: float
) -> list[Detections | None]:
    """Faces in the orientation of each photo with the most certain one; None where none beats its score."""
    height, width = photos.shape[1:3]
    copies = _reduced(photos, _scale_to(height, width, _TURNED_PIXELS))
    height, width = copies.shape[1:3]
    best = [max(score, _FOUND) for score in scores]
    found: list[Detections | None] = [None] * len(photos)
    for quarters in (1, 2, 3):
        turned = torch.rot90(copies, quarters, (1, 2))
        for i, faces in enumerate(_search_upright(turned, detector, min_score, _TURNED_PIXELS)):
            if faces.best_score > best[i]:
                best[i] = faces.best_score
                faces = derotate_landmarks(turned[i], faces, detector)
                found[i] = _stretched(faces.turned_back(quarters, height, width), copies, photos)
    return found


def _scale_to(height: int, width: int, pixels: int) -> float:
    return min(1.0, math.sqrt(pixels / (height * width)))


def _reduced(photos: Tensor, scale: float) -> Tensor:
    height, width = photos.shape[1:3]
    return resize(photos, max(1, round(height * scale)), max(1, round(width * scale)))


def _stretched(faces: Detections, copies: Tensor, photos: Tensor) -> Detections:
    """Faces in px of a reduced copy → px of the photo."""
    ratio = faces.boxes.new_tensor([photos.shape[2] / copies.shape[2], photos.shape[1] / copies.shape[1]])
    return faces.moved(ratio)


def _detect_in_tiles(photos: Tensor, detector: Detector, min_score: float) -> list[Detections]:
    """A few tiles at a time. What an inner edge of a tile cuts is whole in the next tile or a coarser copy."""
    height, width = photos.shape[1:3]
    if height * width <= _TILE * _TILE:
        return detector(photos, min_score)
    candidates: list[list[Detections]] = [[] for _ in photos]
    for (y0, y1), (x0, x1) in product(_spans(height), _spans(width)):
        for own, found in zip(candidates, detector(photos[:, y0:y1, x0:x1], min_score), strict=True):
            boxes = found.boxes
            inner = boxes.new_tensor([x0 > 0, y0 > 0, x1 < width, y1 < height]).bool()
            edge = boxes.new_tensor([x1 - x0, y1 - y0])
            beyond = torch.cat([boxes[:, :2] <= 1, boxes[:, 2:] >= edge - 1], 1)
            own.append(found[~(beyond & inner).any(-1)].moved(1.0, boxes.new_tensor([x0, y0])))
    return [Detections.cat(own) for own in candidates]


def _spans(length: int) -> list[tuple[int, int]]:
    """Overlapping spans of at most a tile that cover 0…length evenly."""
    count = max(1, math.ceil((length - _OVERLAP) / (_TILE - _OVERLAP)))
    size = math.ceil((length + (count - 1) * _OVERLAP) / count)
    return [(start, min(start + size, length)) for start in (i * (size - _OVERLAP) for i in range(count))]
