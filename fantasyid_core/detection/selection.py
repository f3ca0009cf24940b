"""Of the faces that `detection` found, the one that is wanted; and the picture that numbers them."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FaceNotFoundError
from ..images import as_mask, as_photos, from_pil, label, resize, to_pil
from ..optional_import import require
from . import yunet
from .dense_landmarks import with_dense_landmarks
from .dense_pose import CONFIDENT
from .detections import Detector
from .face_contours import CONTOURS
from .faces import DetectedFace, detect_batch

log = logging.getLogger(__name__)

MIN_FACE = 24
_FACE_PER_LINE = 80  # widths of a contour's line in a face, from 1 px on
SELECTIONS = ("largest", "centre", "leftmost", "rightmost", "index")


def select(
    faces: Sequence[DetectedFace], which: str = "largest", index: int = 0, mask: Tensor | None = None
) -> DetectedFace:
    """One of the faces of one photo.

    Args:
        faces: as `detect` returns them.
        which: "largest", "centre" (nearest to the middle of the photo), "leftmost", "rightmost", or "index".
        index: position in `faces` (0 is the largest), for "index".
        mask: (H, W) or (1, H, W), any size, stretched over the photo; only faces with at least three of their five
            landmarks where it is above 0.5 are considered. `index` still counts all faces.

    Raises:
        FaceNotFoundError: no face, not that face, or one too small to tell a person by.
        ImageError: the mask has another shape.
    """
    if which not in SELECTIONS:
        raise FaceNotFoundError(
            f"There is no way to select a face called '{which}'; choose one of {', '.join(SELECTIONS)}."
        )
    if not faces:
        raise FaceNotFoundError(
            "No face was found in the photo. Use a photo of one person, with the face upright, well lit and not "
            "covered; of a small or blurred face lower min_score; of a drawn person use 'FantasyID Face by "
            "Hand'."
        )
    if which == "index" and not 0 <= index < len(faces):
        raise FaceNotFoundError(
            f"Face {index} was asked for, but the photo shows {len(faces)}. "
            f"Choose an index from 0 (the largest) to {len(faces) - 1}."
        )
    chosen = [faces[index]] if which == "index" else list(faces)
    if mask is not None:
        chosen = [face for face in chosen if _inside(face, mask)]
        if not chosen:
            asked = f"Face {index} is not" if which == "index" else f"None of the {len(faces)} faces in the photo is"
            raise FaceNotFoundError(f"{asked} inside the mask. Paint the mask over the face's eyes, nose and mouth.")

    def key(face: DetectedFace) -> float:
        x0, y0, x1, y1 = face.box.tolist()
        if which == "leftmost":
            return x0
        if which == "rightmost":
            return -x1
        if which == "centre":
            height, width = face.image.shape[:2]
            return math.hypot((x0 + x1 - width) / 2, (y0 + y1 - height) / 2)
        return (x0 - x1) * (y1 - y0)

    face = min(chosen, key=key)
    face_width, face_height = (face.box[2:] - face.box[:2]).tolist()
    if min(face_width, face_height) < MIN_FACE:
        raise FaceNotFoundError(
            f"The face is only {face_width:.0f} × {face_height:.0f} px; expected at least {MIN_FACE} px. "
            "Use a closer or larger photo."
        )
    return face


def _inside(face: DetectedFace, mask: Tensor) -> bool:
    mask = as_mask(mask)
    height, width = face.image.shape[:2]
    hits = 0
    for x, y in face.landmarks.tolist():
        row, column = math.floor(y / height * mask.shape[0]), math.floor(x / width * mask.shape[1])
        within = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
        hits += within and bool(mask[row, column] > 0.5)
    return hits >= 3


@dataclass(frozen=True, eq=False)
class FoundFace:
    """The face that was asked for in a photo or batch.

    Attributes:
        face: the selected face, with its dense landmarks; faces: all faces of its photo.
        frame: which photo of the batch that is; skipped: those that do not show the face; frames: how many there were.
    """

    face: DetectedFace
    faces: list[DetectedFace]
    frame: int
    skipped: tuple[int, ...]
    frames: int

    @property
    def report(self) -> str:
        """What was found, in a sentence or two for the artist."""
        face, others = self.face, len(self.faces) - 1
        pose = f"yaw {face.pose.yaw:+.0f}°, pitch {face.pose.pitch:+.0f}°, roll {face.pose.roll:+.0f}°"
        lines = [
            f"Face {next(i for i, other in enumerate(self.faces) if other is face)} of {others + 1}"
            + (f" in frame {self.frame}" if self.frames > 1 else "")
            + f": score {face.score:.2f}, {pose}, sharpness {face.sharpness:.2f}, cut off {face.occlusion:.2f}."
        ]
        if self.skipped:
            shown = ", ".join(map(str, self.skipped[:20])) + (" …" if len(self.skipped) > 20 else "")
            lines.append(f"Skipped {len(self.skipped)} of {self.frames} frames, which do not show it: {shown}.")
        return "\n".join(lines)


def find_face(
    images: Tensor,
    which: str = "largest",
    index: int = 0,
    mask: Tensor | None = None,
    *,
    min_score: float = 0.6,
    detector: Detector = yunet.detect,
    device: torch.device | str | None = None,
) -> FoundFace:
    """The selected face of a photo, or of the frame of a batch that shows it best.

    Args:
        images: (B, H, W, C). A frame without a (fitting) face is skipped; of the others the most certain face wins.
        which, index, mask: as for `select`; the mask is one for all frames (H, W), (1, H, W), or one each (B, H, W).
        min_score, detector, device: as for `detect_batch`.

    Raises:
        FaceNotFoundError: no frame shows that face; the message is that of the first frame.
        ImageError: a photo or the mask cannot be used.
    """
    photos = as_photos(images)
    best, best_frame, skipped, first_error = None, 0, [], None
    for i, faces in enumerate(detect_batch(photos, min_score=min_score, detector=detector, device=device)):
        own_mask = mask[i] if mask is not None and mask.ndim == 3 and len(mask) == len(photos) else mask
        try:
            if not faces and photos[i].median() > 0.99:
                raise FaceNotFoundError(
                    "The photo is almost all white, so no face was found. If it looks right elsewhere it is a 16-bit "
                    "grey picture, which ComfyUI's Load Image turns white: save it with 8 bits."
                )
            face = select(faces, which, index, own_mask)
        except FaceNotFoundError as error:
            first_error = first_error or error
            skipped.append(i)
            continue
        if best is None or face.score > best[0].score:
            best, best_frame = (face, faces), i
    if best is None:
        raise first_error or FaceNotFoundError("There is no picture to find a face in: connect one.")
    if skipped:
        log.info("FantasyID: %d of %d frames do not show the face; they were skipped.", len(skipped), len(photos))
    (face,) = with_dense_landmarks([best[0]], device=device)
    faces = [face if other is best[0] else other for other in best[1]]
    return FoundFace(face, faces, best_frame, tuple(skipped), len(photos))


def numbered(
    faces: Sequence[DetectedFace], chosen: DetectedFace | None = None, word: str = "", long_side: int = 1024
) -> Tensor:
    """The photo of `faces` (at least one) with their boxes, positions and scores drawn; the chosen one in green.

    Where a face has dense landmarks their contours are drawn, else the detector's five.

    Args:
        word: what is written beside the chosen one's score.

    Returns:
        (h, w, 3) float32 0…1, long side at most `long_side`, on the CPU.
    """
    ImageDraw = require("PIL.ImageDraw", "Drawing a preview", "pillow")
    photo = faces[0].image
    height, width = photo.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    picture = to_pil(resize(photo, max(1, round(height * scale)), max(1, round(width * scale))))
    draw = ImageDraw.Draw(picture)
    line = max(2, long_side // 400)
    for i, face in enumerate(faces):
        colour = (80, 255, 80) if face is chosen else (255, 210, 60)
        x0, y0, x1, y1 = (face.box * scale).tolist()
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=line)
        if face.dense_landmarks is not None and face.dense_confidence >= CONFIDENT:
            places = [tuple(place) for place in (face.dense_landmarks[:, :2] * scale).tolist()]
            thickness = max(1, round((x1 - x0) / _FACE_PER_LINE))
            for contour in CONTOURS:
                draw.line([places[point] for point in contour], fill=colour, width=thickness)
        else:
            for x, y in (face.landmarks * scale).tolist():
                draw.ellipse((x - line, y - line, x + line, y + line), fill=colour)
        label(draw, (x0, y0), f"{i}  {face.score:.2f}" + (f"  {word}" if word and face is chosen else ""), colour)
    return from_pil(picture)
