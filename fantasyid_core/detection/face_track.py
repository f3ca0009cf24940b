"""A video's frames → the dense landmarks of one person in every frame.

Every frame's square comes from the frame before, so that the detector is asked only at the start, after a cut and where
the face is lost. Another person's face that takes the place of this one's is told by how it looks, where the caller has
something that describes faces. Frames are looked at one by one: of each only its points stay in memory.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FaceNotFoundError, ImageError
from ..images import as_photo, from_pil, resize, to_pil
from ..optional_import import require
from . import dense_landmarks
from .alignment import align
from .dense_landmarks import look, squares
from .faces import DetectedFace, detect
from .landmark_network import POINTS
from .one_euro import OneEuroFilter

log = logging.getLogger(__name__)

Describe = Callable[[Tensor], Tensor]
"""Aligned crops (N, S, S, 3) float 0…1 → unit vectors (N, D) whose products say how alike the faces look."""

FIVE = (468, 473, 4, 61, 291)
"""Of the dense landmarks those that the detector finds: irises, nose tip, mouth corners; the person's right first."""
MIN_CONFIDENCE = 0.5
_LARGEST_STEP, _LARGEST_GROWTH = 0.5, 1.3  # from frame to frame, in sizes of the face
_SEARCHED, _SPEED = 1.0, 2.0  # sizes of the face about where it was lost, and more for every second since
_SAME_SIZE = 1.7
_REMEMBERED = 8  # descriptions of the person
# Products of descriptions: of one person where the place is right too, of one person anywhere, and from where on a face
# is so like a known one that it says no more.
_ALIKE, _SAME, _NEW = 0.2, 0.48, 0.9
_PATIENCE, _SELDOM = 1.0, 5  # seconds after a loss in which every frame is searched, then every fifth
# As in views/tracking: mean difference of neighbouring frames' thumbnails from which on a cut lies between them.
_CUT, _THUMBNAIL = 0.1, 24


@dataclass(frozen=True, eq=False)
class FaceTrack:
    """One person over T frames, on the CPU.

    Attributes:
        points: (T, 478, 3) px as `dense_landmarks.read` finds them, smoothed; NaN where the face is not seen.
        confidence: (T,) 0…1, how certainly there is a face; 0 where it is not seen.
        present: (T,) bool, whether it is seen.
        fps: frames per second.
    """

    points: Tensor
    confidence: Tensor
    present: Tensor
    fps: float

    @property
    def report(self) -> str:
        """How much of the video shows the face, in a sentence for the artist."""
        frames, seen = len(self.present), int(self.present.sum())
        report = f"The face is in {seen} of {frames} frames ({seen / frames:.0%})."
        return report if seen == frames else f"{report} It is missing in {_spans(~self.present)}."


def follow(
    frames: Tensor | Iterable[Tensor],
    fps: float,
    face: DetectedFace | None = None,
    *,
    describe: Describe | None = None,
    min_score: float = 0.6,
    smooth: bool = True,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> FaceTrack:
    """Follow one person through a video.

    Args:
        frames: (T, H, W, C), or frames (H, W, C) or chunks of them (n, H, W, C) one after the other, each as
            `images.as_photo` takes it; what cannot be used shows no face.
        fps: frames per second.
        face: whom to follow, from any photo; looks alone tell, so it needs `describe`. If None, the largest face of the
            first frame that has one.
        describe: `views.appearance.describe` or a recogniser's; without it places and sizes alone tell people apart.
        min_score: of the detector, 0…1.
        smooth: whether points are steadied by a One Euro filter.
        device: where the networks run (default: where the frames are).
        progress: called with the number of frames that are done.

    Raises:
        ImageError: there are no frames, or none can be used; what is wrong with the first.
        FaceNotFoundError: no frame shows the face.
    """
    follower = _Follower(fps, describe, min_score, smooth, device)
    if face is not None and describe is not None:
        follower.remember(face.crop)
    found: list[tuple[Tensor, float] | None] = []
    first_error: ImageError | None = None
    usable = 0
    for number, frame in enumerate(_one_by_one(frames)):
        try:
            photo = as_photo(frame, f"frame {number}")
        except ImageError as error:
            first_error = first_error or error
            follower.lose()
            found.append(None)
        else:
            usable += 1
            found.append(follower.step(photo))
        if progress is not None:
            progress(number + 1)
    if not usable:
        raise first_error or ImageError("The video has no frames: connect one with at least one frame.")
    track = _joined(found, fps)
    if not track.present.any():
        who, instead = ("A face", "") if face is None else ("The person", " Or leave 'face' unconnected.")
        raise FaceNotFoundError(
            f"{who} was not found in any of the {len(found)} frames. Use a video in which the face is upright, well "
            f"lit and at least 24 px wide.{instead}"
        )
    if first_error is not None:
        log.warning("FantasyID: %d of %d frames cannot be used: %s", len(found) - usable, len(found), first_error)
    return track


def from_landmarks(frames: Sequence[Sequence[Tensor]], fps: float, *, smooth: bool = True) -> FaceTrack:
    """The track of the largest face of the first frame with one, by landmarks that were found elsewhere.

    Args:
        frames: of every frame its faces, (478, 2 or 3) px each; depths as `dense_landmarks.read` has them, else 0.
        fps, smooth: as for `follow`.

    Raises:
        FaceNotFoundError: no frame has a face, or another number of landmarks.
    """
    steady = OneEuroFilter(fps)
    found: list[tuple[Tensor, float] | None] = []
    last: Tensor | None = None
    missing = 0
    for faces in frames:
        for face in faces:
            if face.ndim != 2 or len(face) != POINTS or face.shape[1] < 2:
                raise FaceNotFoundError(
                    f"The landmarks of a face have shape {tuple(face.shape)}; expected ({POINTS}, 2 or 3). Use those "
                    "of ComfyUI's Detect Face Landmarks (MediaPipe), or leave them unconnected."
                )
        there = [face[:, :3].float().cpu() for face in faces if _is_usable(face)]
        if last is not None:
            place, reach = _middle(last), float(_size(last)) * (_LARGEST_STEP + _SPEED * missing / fps)
            there = [face for face in there if float((_middle(face) - place).norm()) < reach]
            there.sort(key=lambda face: float((_middle(face) - place).norm()))
        else:
            there.sort(key=lambda face: -float(_size(face)))
        if not there:
            missing += 1
            steady.reset()
            found.append(None)
            continue
        missing, last = 0, there[0]
        points = steady(last, float(_size(last))) if smooth else last
        found.append((torch.nn.functional.pad(points, (0, 3 - points.shape[1])), 1.0))
    track = _joined(found, fps)
    if not track.present.any():
        raise FaceNotFoundError(
            f"None of the {len(found)} frames has landmarks of a face: use a video in which the face is seen, or leave "
            "the landmarks unconnected."
        )
    return track


def with_depths(flat: Tensor, in_crop: Tensor) -> Tensor:
    """Landmarks (K, 2) px of a photo, and (K, 3) px of the crop that was looked at → (K, 3) px of the photo."""
    scale = _spread(flat) / _spread(in_crop[:, :2]).clamp(min=1e-6)
    return torch.cat([flat, scale * in_crop[:, 2:]], 1)


def _spread(points: Tensor) -> Tensor:
    return (points - points.mean(0)).square().sum(-1).mean().sqrt()


class _Follower:
    """What is known of the person after the frames so far."""

    def __init__(
        self,
        fps: float,
        describe: Describe | None,
        min_score: float,
        smooth: bool,
        device: torch.device | str | None,
    ):
        self.fps, self.describe, self.min_score, self.device = fps, describe, min_score, device
        self._filter = OneEuroFilter(fps) if smooth else None
        self._first: Tensor | None = None  # how the person looked at first, and of late
        self._recent: deque[Tensor] = deque(maxlen=_REMEMBERED)
        self._last: Tensor | None = None  # points (478, 3) in the frame before, while the face is followed
        self._place: Tensor | None = None  # where it was seen last; None after a cut
        self._missing = 0  # frames since then
        self._thumbnail: Tensor | None = None

    def remember(self, crop: Tensor) -> None:
        """How the person looks, by an aligned crop (S, S, 3)."""
        self._first = self._described(crop)

    def lose(self) -> None:
        """Take the face as not seen in this frame."""
        self._last = None
        self._missing += 1
        if self._filter is not None:
            self._filter.reset()

    def step(self, photo: Tensor) -> tuple[Tensor, float] | None:
        """Points (478, 3) px and confidence in the next frame (H, W, 3); None where the person is not seen."""
        if self._is_cut(photo):
            self.lose()
            self._place = None
        seen = self._followed(photo) or self._searched(photo)
        if seen is None:
            self.lose()
            return None
        points, confidence = seen
        if self._filter is not None:
            points = self._filter(points, float(_size(points)))
        self._last = self._place = points
        self._missing = 0
        return points.cpu(), confidence

    def _followed(self, photo: Tensor) -> tuple[Tensor, float] | None:
        """By the square of the frame before."""
        if self._last is None:
            return None
        found, confidence = look(photo, squares(self._last[None]), self.device)
        points = found[0]
        if not (float(confidence) >= MIN_CONFIDENCE and _is_usable(points) and self._continues(points)):
            self.lose()
            return None
        # In every frame, since a head that turns looks like itself a moment ago, not like itself at first.
        if self.describe is not None and not self._accept(self._described(align(photo, points[list(FIVE), :2])[0])):
            self.lose()
            return None
        return points, float(confidence)

    def _continues(self, points: Tensor) -> bool:
        assert self._last is not None, "asked only while the face is followed"
        before = float(_size(self._last))
        growth = float(_size(points)) / max(before, 1e-6)
        step = float((_middle(points) - _middle(self._last)).norm())
        return step < _LARGEST_STEP * before and 1 / _LARGEST_GROWTH < growth < _LARGEST_GROWTH

    def _searched(self, photo: Tensor) -> tuple[Tensor, float] | None:
        """By the detector: near the place where the face was lost, or wherever a face looks the same."""
        if self._missing > _PATIENCE * self.fps and self._missing % _SELDOM:
            return None
        faces = detect(photo, min_score=self.min_score, device=self.device)
        if self.describe is None:
            faces = [face for face in faces if self._is_near(face.box)]
        if not faces:
            return None
        landmarks = torch.stack([face.landmarks for face in faces])
        points, confidence = dense_landmarks.read(photo, landmarks, device=self.device)
        seen = [i for i in range(len(faces)) if confidence[i] >= MIN_CONFIDENCE and _is_usable(points[i])]
        if not seen:
            return None
        best, place = seen[0], self._place  # the largest
        if self.describe is not None:
            descriptions = {i: self._described(faces[i].crop) for i in seen}
            if self._first is not None:
                best = max(seen, key=lambda i: self._likeness(descriptions[i]))
            if not self._accept(descriptions[best], _ALIKE if self._is_near(faces[best].box) else _SAME):
                return None
        elif place is not None:
            best = min(seen, key=lambda i: float((_middle(points[i]) - _middle(place)).norm()))
        return points[best], float(confidence[best])

    def _is_near(self, box: Tensor) -> bool:
        """Whether a face may be the lost one by place and size; any may at the start and after a cut."""
        if (place := self._place) is None:
            return True
        size, side = float(_size(place)), float((box[2:] - box[:2]).amax())
        reach = size * (_SEARCHED + _SPEED * self._missing / self.fps)
        apart = float(((box[:2] + box[2:]) / 2 - _middle(place)).norm())
        return apart < reach and 1 / _SAME_SIZE < side / max(size, 1e-6) < _SAME_SIZE

    def _accept(self, description: Tensor, least: float = _ALIKE) -> bool:
        """Whether this is the person, as far as looks tell; if so, what they look like now is remembered."""
        if self._first is None:
            self._first = description
            return True
        likeness = self._likeness(description)
        if least <= likeness < _NEW:
            self._recent.append(description)
        return likeness >= least

    def _likeness(self, description: Tensor) -> float:
        assert self._first is not None, "asked only where somebody is known"
        return max(float(description @ own) for own in (self._first, *self._recent))

    def _described(self, crop: Tensor) -> Tensor:
        assert self.describe is not None, "asked only where faces are described"
        return self.describe(crop[None])[0].float().cpu()

    def _is_cut(self, photo: Tensor) -> bool:
        before, self._thumbnail = self._thumbnail, resize(photo, _THUMBNAIL, _THUMBNAIL)
        return before is not None and float((self._thumbnail - before).abs().mean()) > _CUT


def _is_usable(points: Tensor) -> bool:
    return bool(points.isfinite().all()) and float(_size(points)) > 0


def _middle(points: Tensor) -> Tensor:
    return points[:, :2].mean(0)


def _size(points: Tensor) -> Tensor:
    """Larger side of the box around points (K, ≥ 2), px."""
    return (points[:, :2].amax(0) - points[:, :2].amin(0)).amax()


def _one_by_one(frames: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    if isinstance(frames, Tensor) and frames.ndim == 3:
        frames = frames[None]
    for chunk in frames:
        if isinstance(chunk, Tensor) and chunk.ndim == 4:
            yield from chunk
        else:
            yield chunk


def _joined(found: list[tuple[Tensor, float] | None], fps: float) -> FaceTrack:
    points = torch.full((len(found), POINTS, 3), torch.nan)
    confidence = torch.zeros(len(found))
    for i, seen in enumerate(found):
        if seen is not None:
            points[i], confidence[i] = seen
    return FaceTrack(points, confidence, torch.tensor([seen is not None for seen in found]), fps)


def _spans(missing: Tensor, most: int = 6) -> str:
    """Frames that are True in words: "frames 3 to 8, frame 12"."""
    edges = torch.nn.functional.pad(missing.int(), (1, 1)).diff().nonzero().flatten().tolist()
    pairs = [(start, end - 1) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    words = [f"frame {start}" if start == end else f"frames {start} to {end}" for start, end in pairs[:most]]
    return ", ".join(words) + (f" and {len(pairs) - most} more stretches" if len(pairs) > most else "")


def drawn(frame: Tensor, points: Tensor, long_side: int = 512) -> Tensor:
    """A frame (H, W, 3) float 0…1, reduced to a long side of at most `long_side`, with points (478, ≥ 2) px on it.

    Returns:
        (h, w, 3) float32 0…1 on the CPU; without points where they are NaN.
    """
    ImageDraw = require("PIL.ImageDraw", "Drawing a preview", "pillow")
    height, width = frame.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    picture = to_pil(resize(frame.float(), max(1, round(height * scale)), max(1, round(width * scale))))
    if bool(points[:, :2].isfinite().all()):
        draw = ImageDraw.Draw(picture)
        for x, y in ((points[:, :2] + 0.5) * scale - 0.5).tolist():
            draw.point((x, y), fill=(80, 255, 80))
    return from_pil(picture)
