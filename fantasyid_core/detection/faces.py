"""Photo → faces: boxes, five landmarks and the FFHQ-aligned crop that identity encoders were trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..images import as_photo, as_photos
from . import yunet
from .alignment import align
from .detections import Detections, Detector
from .head_pose import FRONTAL, HeadPose, estimate
from .multiscale import search
from .quality import occlusion, sharpness

MAX_FACES = 32
_FULL_SIZE = 160  # px, from where a larger face says no more of its person


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
        occlusion: 0…1, share of the face that the edge of the photo cuts off. What lies over the face is not in it:
            see `views.suitability`.
        dense_landmarks: (478, 3) px, as `dense_landmarks.read` finds them; `None` where nobody asked for them.
        dense_confidence: 0…1, how certainly those are on a face.
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
    dense_landmarks: Tensor | None = None
    dense_confidence: float = 0.0

    @property
    def quality(self) -> float:
        """0…1, to rank views of a person by: certainty × sharpness × what is in the photo × size (full from 160 px)."""
        size = min(1.0, float((self.box[2:] - self.box[:2]).min().clamp(min=0)) / _FULL_SIZE)
        return self.score * self.sharpness * (1 - self.occlusion) * size


def detect(
    image: Tensor,
    *,
    min_score: float = 0.6,
    detector: Detector = yunet.detect,
    device: torch.device | str | None = None,
) -> list[DetectedFace]:
    """All faces of one photo, the largest first (at most 32); empty if there is none. See `detect_batch`.

    Args:
        image: a photo as `images.as_photo` takes it.
    """
    return detect_batch(as_photo(image)[None], min_score=min_score, detector=detector, device=device)[0]


def detect_batch(
    images: Tensor,
    *,
    min_score: float = 0.6,
    detector: Detector = yunet.detect,
    device: torch.device | str | None = None,
) -> list[list[DetectedFace]]:
    """All faces of every photo or frame, the largest first (at most 32 each); empty where there is none.

    Args:
        images: (B, H, W, C) as `images.as_photos` takes it.
        min_score: faces that the detector is less certain of are left out, 0…1.
        detector: `yunet.detect` or `insightface.load(…)`.
        device: where faces are searched (default: where the photos are); the results are where the photos are.

    Raises:
        ImageError: the photos cannot be used.
    """
    photos = as_photos(images)
    found = search(photos, detector, min_score, device)
    return [faces_at(photo, _largest(faces).to(photo.device)) for photo, faces in zip(photos, found, strict=True)]


def _largest(faces: Detections) -> Detections:
    return faces[faces.areas.argsort(descending=True)][:MAX_FACES]


def faces_at(photo: Tensor, places: Detections) -> list[DetectedFace]:
    """Faces whose places are known.

    Args:
        photo: (H, W, 3) float 0…1.
        places: on the photo's device.
    """
    if not len(places):
        return []
    crops, to_crops = map(torch.stack, zip(*(align(photo, own) for own in places.landmarks), strict=True))
    occlusions = [occlusion(to_crop, *photo.shape[:2], size=crops.shape[1]) for to_crop in to_crops]
    measured = zip(
        places.boxes,
        places.landmarks,
        places.scores.tolist(),
        crops,
        to_crops,
        estimate(places.landmarks, crops, to_crops),
        sharpness(crops).tolist(),
        torch.stack(occlusions).tolist(),
        strict=True,
    )
    return [DetectedFace(photo, *values) for values in measured]
