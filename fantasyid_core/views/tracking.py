"""Faces over the frames of a video, or over separate photos: who is where, for how long.

A face is followed while its box overlaps the one before, its size changes little and it looks alike; a cut ends all
tracks. Only numbers are kept of each face, and few of each pose, so that long videos need little memory.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..detection.dense_landmarks import with_dense_landmarks
from ..detection.dense_pose import CONFIDENT
from ..detection.face_contours import eye_opening, mouth_opening
from ..detection.faces import DetectedFace, detect
from ..detection.head_pose import HeadPose
from ..detection.selection import MIN_FACE
from ..errors import ImageError
from ..images import as_photo, resize
from .appearance import Recogniser, describe

log = logging.getLogger(__name__)

BIN = 15.0  # degrees of yaw and pitch
_PER_BIN = 4
_MIN_OVERLAP, _MIN_SIZE_RATIO, _MIN_SIMILARITY, _MAX_GAP = 0.3, 0.6, 0.2, 5
_CLOSED, _EYES_CLOSED = 0.1, 0.5  # opening of eyes below which they are closed, and what such a face's score counts
# Mean absolute difference of neighbouring frames' thumbnails from which on a cut lies between them.
_CUT, _THUMBNAIL = 0.1, 24


@dataclass(frozen=True, eq=False)
class Sighting:
    """One face in one frame, without its pixels; tensors on the CPU.

    Attributes:
        frame: number of the frame.
        box: (4,) x0 y0 x1 y1 px.
        landmarks: (5, 2) px.
        pose: of the head.
        quality: 0…1, its `score`.
        appearance: (576,) unit vector, `appearance.describe`: for near-duplicates and tracking.
        identity: (D,) unit vector of the recogniser.
        opening: (2,) how far mouth and eyes are open, in widths of them; None where that is not known.
    """

    frame: int
    box: Tensor
    landmarks: Tensor
    pose: HeadPose
    quality: float
    appearance: Tensor
    identity: Tensor
    opening: Tensor | None = None

    @property
    def bin(self) -> tuple[int, int]:
        """Number of the pose's bin in yaw and pitch; (0, 0) is frontal."""
        return round(self.pose.yaw / BIN), round(self.pose.pitch / BIN)


@dataclass(eq=False)
class Track:
    """One face followed from frame to frame.

    Attributes:
        last: its latest sighting; it begins with one.
        frames: numbers of the frames it is in.
    """

    last: Sighting
    frames: set[int] = field(default_factory=set)
    _bins: dict[tuple[int, int], list[Sighting]] = field(default_factory=dict)

    def add(self, sighting: Sighting) -> None:
        self.frames.add(sighting.frame)
        self.last = sighting
        best = self._bins.setdefault(sighting.bin, [])
        best.append(sighting)
        best.sort(key=lambda s: (-s.quality, s.frame))
        del best[_PER_BIN:]

    @property
    def sightings(self) -> list[Sighting]:
        """The best few of every pose, in the order of the frames."""
        return sorted((s for best in self._bins.values() for s in best), key=lambda s: s.frame)


@dataclass(frozen=True, eq=False)
class Tracks:
    """What `follow` found.

    Attributes:
        tracks: in the order in which they begin, and by size within a frame.
        frames: how many frames there were.
        without_face: numbers of the frames without a usable face.
        unusable: frame number → what was wrong with it.
    """

    tracks: list[Track]
    frames: int
    without_face: list[int]
    unusable: dict[int, str]


def follow(
    images: Tensor | Sequence[Tensor],
    recogniser: Recogniser,
    *,
    min_score: float = 0.6,
    device: torch.device | str | None = None,
) -> Tracks:
    """Find and follow all faces of at least 24 px.

    Args:
        images: frames (B, H, W, C) or a sequence of pictures, of any sizes, as `images.as_photo` takes them.
        recogniser: gives the sightings their identity.
        min_score, device: as for `detection.detect`.

    Raises:
        ImageError: not one of the frames can be used; what is wrong with the first.
    """
    tracks: list[Track] = []
    active: list[Track] = []
    without_face, unusable = [], {}
    thumbnail: Tensor | None = None
    first_error: ImageError | None = None
    for number, image in enumerate(images):
        try:
            photo = as_photo(image, f"frame {number}")
        except ImageError as error:
            first_error = first_error or error
            unusable[number] = str(error)
            continue
        previous, thumbnail = thumbnail, resize(photo, _THUMBNAIL, _THUMBNAIL)
        if previous is None or float((thumbnail - previous).abs().mean()) > _CUT:
            active = []
        faces = [face for face in detect(photo, min_score=min_score, device=device) if _large(face)]
        if not faces:
            without_face.append(number)
            continue
        active = [track for track in active if number - track.last.frame <= _MAX_GAP]
        new = _add_sightings(active, _sightings(number, faces, recogniser))
        active += new
        tracks += new
    if first_error is not None and len(unusable) == len(images):
        raise first_error
    return Tracks(tracks, len(images), without_face, unusable)


def _add_sightings(tracks: Sequence[Track], sightings: Sequence[Sighting]) -> list[Track]:
    """Add the sightings of one frame to the tracks that they continue; new tracks of the others."""
    new = []
    for sighting, track in _match_tracks(tracks, sightings):
        if track is None:
            track = Track(sighting)
            new.append(track)
        track.add(sighting)
    return new


def _large(face: DetectedFace) -> bool:
    return float((face.box[2:] - face.box[:2]).min()) >= MIN_FACE


def _sightings(number: int, faces: Sequence[DetectedFace], recogniser: Recogniser) -> list[Sighting]:
    faces = with_dense_landmarks(faces)
    crops = torch.stack([face.crop for face in faces])
    appearances = describe(crops).cpu()
    identities = appearances if recogniser.embed is describe else recogniser.embed(crops).float().cpu()
    return [
        Sighting(
            number, face.box.cpu(), face.landmarks.cpu(), face.pose, score(face), appearance, identity, opening(face)
        )
        for face, appearance, identity in zip(faces, appearances, identities, strict=True)
    ]


def score(face: DetectedFace) -> float:
    """0…1, how well a face shows the person: its quality, half of that where its landmarks tell of closed eyes."""
    eyes = None if (found := opening(face)) is None else float(found[1])
    return face.quality * (_EYES_CLOSED if eyes is not None and eyes < _CLOSED else 1)


def opening(face: DetectedFace) -> Tensor | None:
    """How far mouth and eyes are open, as in `Sighting`, by the face's dense landmarks if it has them."""
    if face.dense_landmarks is None or face.dense_confidence < CONFIDENT:
        return None
    points = face.dense_landmarks
    return torch.stack([mouth_opening(points), eye_opening(points).mean()]).cpu()


def _match_tracks(tracks: Sequence[Track], sightings: Sequence[Sighting]) -> Iterator[tuple[Sighting, Track | None]]:
    """Each sighting with the track that it continues, best matches first; the others with None."""
    pairs = [
        (match, i, j)
        for i, sighting in enumerate(sightings)
        for j, track in enumerate(tracks)
        if (match := _match(track.last, sighting)) > 0
    ]
    free_sightings, free_tracks = set(range(len(sightings))), set(range(len(tracks)))
    for _, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if i in free_sightings and j in free_tracks:
            free_sightings.remove(i)
            free_tracks.remove(j)
            yield sightings[i], tracks[j]
    for i in sorted(free_sightings):
        yield sightings[i], None


def _match(previous: Sighting, current: Sighting) -> float:
    """How well a sighting continues another, above 0 where it may."""
    similarity = float(previous.appearance @ current.appearance)
    low = torch.maximum(previous.box[:2], current.box[:2])
    high = torch.minimum(previous.box[2:], current.box[2:])
    intersection = float((high - low).clamp(min=0).prod())
    areas = [float((s.box[2:] - s.box[:2]).clamp(min=0).prod()) for s in (previous, current)]
    overlap = intersection / max(sum(areas) - intersection, 1e-6)
    size_ratio = math.sqrt(min(areas) / max(*areas, 1e-6))
    matches = overlap >= _MIN_OVERLAP and size_ratio >= _MIN_SIZE_RATIO and similarity >= _MIN_SIMILARITY
    return overlap + similarity if matches else 0.0
