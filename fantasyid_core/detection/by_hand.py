"""A face where the artist says it is, by a mask or a box: for art and anime, or where a detector fails."""

import torch
from torch import Tensor

from ..errors import FaceNotFoundError, ImageError
from ..images import as_mask, as_photo
from .alignment import FFHQ_TEMPLATE
from .detections import Detections
from .faces import DetectedFace, faces_at
from .selection import MIN_FACE

# Where a face's box lies in the FFHQ crop, as YuNet draws it (mean of real faces): x0 y0 x1 y1 px.
_BOX_IN_CROP = (140.0, 130.0, 372.0, 440.0)


def face_in_mask(image: Tensor, mask: Tensor, landmarks: Tensor | None = None) -> DetectedFace:
    """The face that a painted mask covers.

    Args:
        image: one photo, as `images.as_photo` takes it.
        mask: (h, w) or (1, h, w), any size, stretched over the photo; the face is where it is above 0.5.
        landmarks: as for `face_in_box`.

    Raises:
        FaceNotFoundError: nothing is painted, or too little.
        ImageError: the photo or the mask cannot be used.
    """
    photo = as_photo(image)
    mask = as_mask(mask)
    rows, columns = (mask > 0.5).nonzero(as_tuple=True)
    if not len(rows):
        raise FaceNotFoundError("The mask is empty. Paint it over the face, from brows to chin and ear to ear.")
    scale_x, scale_y = photo.shape[1] / mask.shape[1], photo.shape[0] / mask.shape[0]
    edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).tolist()
    x0, y0, x1, y1 = (edge * scale for edge, scale in zip(edges, (scale_x, scale_y) * 2, strict=True))
    return face_in_box(photo, (x0, y0, x1, y1), landmarks)


def face_in_box(image: Tensor, box: tuple[float, float, float, float], landmarks: Tensor | None = None) -> DetectedFace:
    """The face in a box (x0, y0, x1, y1) px of the photo, from the brows to the chin; its score is 1.

    Args:
        landmarks: (5, 2) px if they are known; else those of an upright, frontal face that fills the box.

    Raises:
        FaceNotFoundError: the box is too small or not in the photo.
        ImageError: the photo cannot be used, or the landmarks have another shape.
    """
    photo = as_photo(image)
    height, width = photo.shape[:2]
    x0, y0, x1, y1 = box
    inside = x0 < width and y0 < height and x1 > 0 and y1 > 0
    # A box far larger than the picture, or of no finite size, is a slip too.
    if not (inside and min(x1 - x0, y1 - y0) >= MIN_FACE and max(x1 - x0, y1 - y0) <= 4 * max(height, width)):
        raise FaceNotFoundError(
            f"The box from ({x0:.0f}, {y0:.0f}) to ({x1:.0f}, {y1:.0f}) does not hold a face: expected at least "
            f"{MIN_FACE} px on each side, inside the photo of {width} × {height} px. Draw it around the face."
        )
    corners = photo.new_tensor(box)
    if landmarks is None:
        left, top, right, bottom = _BOX_IN_CROP
        centre = photo.new_tensor([(left + right) / 2, (top + bottom) / 2])
        # The same scale both ways: a face keeps its proportions in a box that is too wide or too high.
        scale = min((x1 - x0) / (right - left), (y1 - y0) / (bottom - top))
        landmarks = (photo.new_tensor(FFHQ_TEMPLATE) - centre) * scale + (corners[:2] + corners[2:]) / 2
    elif landmarks.shape != (5, 2):
        raise ImageError(
            f"The landmarks have shape {tuple(landmarks.shape)}; expected (5, 2): eyes, nose, mouth. "
            "Give x and y of these five points."
        )
    return faces_at(photo, Detections(corners[None], photo.new_ones(1), landmarks.to(photo)[None]))[0]
