"""Photo → faces: boxes, five landmarks and the FFHQ-aligned crop that identity encoders were trained on."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import yunet
from .alignment import align
from .head_pose import FRONTAL, HeadPose, pose_from_landmarks
from .images import as_photo, resize
from .quality import occlusion, sharpness

MAX_FACES = 32

# YuNet knows faces of about 10 to 300 px: one copy for small faces, one for those that fill the picture.
_PIXELS = 1 << 20
_LARGER_PIXELS = 1 << 22
_SMALL_LONG_SIDE = 320
_FULL_SIZE = 160


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """One face of a photo.

    Attributes:
        image: (H, W, 3) float32 0…1, the photo.
        box: (4,) x0 y0 x1 y1 in px of the photo.
        landmarks: (5, 2) x y in px: right eye, left eye, nose, right and left mouth corner (the person's right).
        score: 0…1, the detector's certainty.
        crop: (512, 512, 3) float32 0…1, FFHQ-aligned.
        to_crop: (2, 3) similarity, photo px → crop px.
        pose: how the head is turned, degrees.
        sharpness: 0…1, see `quality.sharpness`.
        occlusion: 0…1, share of the face that is covered or cut off; 0 is an open face.
    """

    image: Tensor
    box: Tensor
    landmarks: Tensor
    score: float
    crop: Tensor
    to_crop: Tensor
    pose: HeadPose = FRONTAL
    sharpness: float = 1.0
    occlusion: float = 0.0

    @property
    def quality(self) -> float:
        """0…1, to rank views of a person by: certainty × sharpness × what is uncovered × size (full from 160 px)."""
        size = min(1.0, float((self.box[2:] - self.box[:2]).min().clamp(min=0)) / _FULL_SIZE)
        return self.score * self.sharpness * (1 - self.occlusion) * size


def detect(image: Tensor, *, min_score: float = 0.6, device: torch.device | str | None = None) -> list[DetectedFace]:
    """All faces of a photo, the largest first (at most 32); empty if there is none.

    Looks at a copy of at most 1 megapixel and at one of 320 px for faces that fill the picture; if neither shows a
    face, at one of at most 4 megapixels. What the network needs therefore does not grow with the photo.

    Args:
        image: a photo as `images.as_photo` takes it.
        min_score: faces the detector is less certain of are left out, 0…1.
        device: where the network runs (default: where the photo is); the results are where the photo is.

    Raises:
        ImageError: the photo cannot be used.
    """
    photo = as_photo(image)
    height, width = photo.shape[:2]
    device = torch.device(device or photo.device)

    def search(scale: float) -> Tensor:
        small = resize(photo, max(1, round(height * scale)), max(1, round(width * scale)))
        rows = yunet.find(small[None].to(device), min_score)[0]
        to_photo = rows.new_tensor([width / small.shape[1], height / small.shape[0]]).repeat(7)
        return torch.cat([rows[:, :14] * to_photo, rows[:, 14:]], 1)

    def scale_to(pixels: int) -> float:
        return min(1.0, math.sqrt(pixels / (height * width)))

    rows = torch.cat([search(scale_to(_PIXELS)), search(min(1.0, _SMALL_LONG_SIDE / max(height, width)))])
    if not len(rows) and height * width > _PIXELS:
        rows = search(scale_to(_LARGER_PIXELS))
    # A face too large for a copy shows up there as pieces: drop what lies half inside a more certain box.
    rows = yunet.suppress(rows, overlap=0.5, of_smaller=True)
    sizes = (rows[:, 2:4] - rows[:, :2]).prod(-1)
    rows = rows[sizes.argsort(descending=True)][:MAX_FACES]
    return [_face(photo, row.to(photo.device), float(row[14])) for row in rows]


def _face(photo: Tensor, row: Tensor, score: float) -> DetectedFace:
    landmarks = row[4:14].reshape(5, 2)
    crop, to_crop = align(photo, landmarks)
    return DetectedFace(
        photo,
        row[:4],
        landmarks,
        score,
        crop,
        to_crop,
        pose_from_landmarks(landmarks),
        float(sharpness(crop[None])[0]),
        float(occlusion(to_crop, *photo.shape[:2], size=crop.shape[0])),
    )
