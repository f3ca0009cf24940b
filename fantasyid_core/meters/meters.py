"""Meters for any video: how like a reference the face is, and how much face and head move, frame by frame."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection.faces import DetectedFace, detect
from ..dit.config import FPS
from ..errors import FaceNotFoundError, ImageError
from ..views.suitability import NO_FACE, openness
from . import likeness, motion
from .attribute_regressor import SIZE, AttributeRegressor, read_attributes
from .drift import measure_drift
from .embedding import DISTANCE, Embedding, embed, locate, warp
from .motion import Motion
from .plot import chart

# Of the window's side: a face that wanders further from its usual place is followed frame by frame.
_WANDER_LIMIT = 0.15

Progress = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Gallery:
    """Whom a video's face is nearest to: the reference or one of a gallery of other people.

    Attributes:
        people: K, how many others the gallery shows.
        nearest: share of the frames with a face in which the reference is nearest, 0…1.
        rank: how many of the others are nearer than the reference in the mean over the frames.
        margin: by how much the reference is nearer than the nearest of the others, in the embedding's measure; below 0
            it is farther.
    """

    people: int
    nearest: float
    rank: int
    margin: float

    def __str__(self) -> str:
        place = "nearest" if not self.rank else f"only number {self.rank + 1} in nearness"
        return (
            f"Of {self.people + 1} people the reference is {place} to the video, by {self.margin:+.3f}; "
            f"in {self.nearest:.0%} of the frames it is the nearest."
        )


@dataclass(frozen=True, eq=False)
class Likeness:
    """How like a reference a video's face is.

    Attributes:
        similarity: (T,) cosine −1…1, NaN where a frame shows no clear face.
        measured: (T,) the same in the measure of the embedding's authors.
        mean: of the similarity; between_frames: of neighbours among the frames that count, 1 where there is but one.
        covered: (T,) bool, a face was found that hardly looks like an open face of a person.
        embedding: the network.
        gallery: whom it is nearest to, where a gallery was given.
        fps: frames per second.
    """

    similarity: Tensor
    measured: Tensor
    mean: float
    between_frames: float
    covered: Tensor
    embedding: Embedding
    gallery: Gallery | None = None
    fps: float = FPS

    @property
    def report(self) -> str:
        """The numbers in words, a line per frame."""
        found, network = self.similarity.isfinite(), self.embedding
        measured = self.measured[found]
        same = float(network.is_same(measured).double().mean())
        side = "below" if network.measure == DISTANCE else "above"
        worst = measured.max() if network.measure == DISTANCE else measured.min()
        lines = [
            f"{network.measure.capitalize()} to the reference ({network.name}): mean {float(measured.mean()):.3f}, "
            f"worst {float(worst):.3f}. Its authors take two faces for one person {side} {network.threshold:g}: "
            f"{same:.0%} of the frames.",
            str(measure_drift(self.measured, self.fps, network.measure == DISTANCE)),
            network.on_photos,
            str(self.gallery or "For a stronger statement give a gallery of other people."),
            f"To compare settings: similarity (cosine) {self.mean:.3f}, of neighbouring frames "
            + (f"{self.between_frames:.3f}." if found.sum() > 1 else "not measured, as one frame counts."),
            _report_skipped(found | self.covered),
            f"{int(self.covered.sum())} of {len(found)} frames show what hardly looks like an open face of a person "
            "(turned away, covered, or an animal) and were left out."
            if self.covered.any()
            else "",
        ]
        why = ["no clear face" if covered else "no face" for covered in self.covered.tolist()]
        frames = [f"{i}: {v:.3f}" if v == v else f"{i}: {why[i]}" for i, v in enumerate(self.measured.tolist())]
        return "\n".join([*(line for line in lines if line), *frames])

    @property
    def plot(self) -> Tensor:
        """(320, 640, 3) float 0…1: the authors' measure over the frames, with their threshold."""
        network = self.embedding
        mean = float(self.measured.nanmean())
        title = f"{network.measure.capitalize()} to the reference ({network.name}), mean {mean:.3f}"
        side = "below" if network.measure == DISTANCE else "above"
        marks = {f"{side}: same person to its authors": network.threshold}
        return chart(title, {network.measure: self.measured.tolist()}, 0.0, 1.0, marks)


def measure_likeness(
    frames: Tensor,
    reference: Tensor,
    reference_landmarks: Tensor | None,
    embedding: Embedding,
    device: torch.device | str | None = None,
    progress: Progress = lambda: None,
    gallery: Sequence[Tensor] = (),
    fps: float = FPS,
    mask: Tensor | None = None,
) -> Likeness:
    """Compare the largest face of every frame with a reference face.

    A frame counts only if its face looks like an open face of a person, see `views.suitability`.

    Args:
        frames: (T, H, W, C) as `images.as_photo` takes each.
        reference: (H, W, C), the photo of the person.
        reference_landmarks: (5, 2) px of the face in it, or None: its largest.
        device, progress: as for `embedding.locate`.
        gallery: photos (H, W, C) of other people, one each; those without a clear face are left out.
        fps: frames per second of the video.
        mask: (1 or T, h, w) 0…1, where in the frames the person is, stretched to them; None: anywhere.

    Raises:
        FaceNotFoundError: the reference, every frame, or all of the gallery show no clear face.
        ImageError: a picture cannot be used.
    """
    _check_frames(frames)
    reference_vector = _embed_reference(reference, reference_landmarks, embedding, device)
    landmarks, covered = clear_faces(frames, device, progress, mask)
    faces = embed(embedding, frames, landmarks, unit=False)
    if not faces.found.any():
        clear = " clear" if covered.any() else ""
        raise FaceNotFoundError(
            f"None of the {len(frames)} frames shows a{clear} face, so there is nothing to compare. "
            "Use a video in which the face is seen."
        )
    unit_vectors = F.normalize(faces.vectors, dim=1)
    similarity = likeness.reference_similarity(unit_vectors, F.normalize(reference_vector, dim=0))
    return Likeness(
        similarity,
        embedding.compare(faces.vectors, reference_vector),
        float(similarity.nanmean()),
        likeness.inter_frame_similarity(unit_vectors[faces.found]) if faces.found.sum() > 1 else 1.0,
        covered,
        embedding,
        _compare_gallery(embedding, faces.vectors[faces.found], reference_vector, gallery, device)
        if len(gallery)
        else None,
        fps,
    )


def _embed_reference(
    reference: Tensor, reference_landmarks: Tensor | None, embedding: Embedding, device: torch.device | str | None
) -> Tensor:
    """The reference's face as the network gives it, (D,). Raises FaceNotFoundError where it shows no clear face."""
    if reference_landmarks is None:
        [reference_landmarks], [covered] = clear_faces([reference], device)
        if covered:
            raise FaceNotFoundError("The reference hardly shows an open face of a person. Use a clear photo of a face.")
    face = embed(embedding, [reference], reference_landmarks[None], unit=False)
    if not face.found.any():
        raise FaceNotFoundError("The reference shows no face to compare with. Use a photo with an upright, lit face.")
    return face.vectors[0]


def _compare_gallery(
    embedding: Embedding,
    vectors: Tensor,
    reference_vector: Tensor,
    gallery: Sequence[Tensor],
    device: torch.device | str | None,
) -> Gallery:
    """The faces of frames (T, D) against the reference (D,) and a gallery of others."""
    others = embed(embedding, gallery, clear_faces(gallery, device)[0], unit=False)
    if not others.found.any():
        raise FaceNotFoundError(
            f"None of the {len(gallery)} pictures of the gallery shows a clear face of a person. "
            "Use photos of other people's faces, or none."
        )
    people = torch.cat([reference_vector[None], others.vectors[others.found]])
    similarity = torch.stack([embedding.compare(vectors, one) for one in people], 1)  # (T, K + 1)
    if embedding.measure == DISTANCE:
        similarity = -similarity
    mean = similarity.mean(0)
    return Gallery(
        len(people) - 1,
        float((similarity.argmax(1) == 0).double().mean()),
        int((mean[1:] > mean[0]).sum()),
        float(mean[0] - mean[1:].max()),
    )


def clear_faces(
    frames: Sequence[Tensor] | Tensor,
    device: torch.device | str | None = None,
    progress: Progress = lambda: None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The largest face of each frame (H, W, C), where it looks like an open face of a person.

    Args:
        mask: (1 or T, h, w) 0…1, stretched to the frames: faces whose middle it leaves out do not count.

    Returns:
        Landmarks (T, 5, 2) px, NaN where there is no such face, and (T,) bool, where there is another.

    Raises:
        ImageError: the mask has another number of frames, is empty, or has values that are no numbers.
    """
    if mask is not None and not (mask.numel() and bool(mask.isfinite().all())):
        raise ImageError(
            f"The mask of shape {tuple(mask.shape)} is empty or has values that are no numbers (NaN). Connect another, "
            "white where the person is."
        )
    if mask is not None and len(mask) not in (1, len(frames)):
        raise ImageError(
            f"The mask has {len(mask)} frames, but the video has {len(frames)}. Connect one mask for all frames or one "
            "for each."
        )
    landmarks, covered = torch.full((len(frames), 5, 2), math.nan), torch.zeros(len(frames), dtype=torch.bool)
    for i, frame in enumerate(frames):
        faces = detect(frame, device=device)
        if mask is not None:
            faces = [face for face in faces if _is_inside(mask[min(i, len(mask) - 1)], face)]
        faces = faces[:1]
        if faces:
            covered[i] = float(openness(faces)[0]) < NO_FACE
            if not covered[i]:
                landmarks[i] = faces[0].landmarks.cpu()
        progress()
    return landmarks, covered


def _is_inside(mask: Tensor, face: DetectedFace) -> bool:
    """Whether the middle of a face lies in the brighter half of a mask (h, w), stretched to its photo."""
    height, width = face.image.shape[:2]
    x, y = (face.box[:2] + face.box[2:]).tolist()
    row, column = int(y / 2 / height * mask.shape[0]), int(x / 2 / width * mask.shape[1])
    return float(mask[min(max(row, 0), mask.shape[0] - 1), min(max(column, 0), mask.shape[1] - 1)]) >= 0.5


def measure_motion(
    frames: Tensor,
    regressor: AttributeRegressor,
    device: torch.device | str | None = None,
    progress: Progress = lambda: None,
) -> Motion:
    """Read landmarks and expressions of the largest face in every frame and take its motion apart.

    The regressor knows head-and-shoulder pictures of synthetic people, so each frame is cut to that framing first.

    Args:
        frames: (T, H, W, 3 or 4) float 0…1, T ≥ 2.
        device, progress: as for `embedding.locate`.

    Raises:
        FaceNotFoundError: fewer than two frames show a face.
        ImageError: the frames cannot be used.
    """
    check_video(frames)
    frames = frames[..., :3].float()
    window = face_windows(locate(frames, device=device, progress=progress), *regressor.framing)
    has_face = window.isfinite().all(1)
    if has_face.sum() < 2:
        raise FaceNotFoundError(
            f"Only {int(has_face.sum())} of the {len(frames)} frames show a face; expected at least 2. "
            "Use a video in which the face is seen."
        )
    found, strengths = _read_windows(frames[has_face], window[has_face], regressor)
    landmarks = frames.new_full((len(frames), *found.shape[1:]), float("nan"), device="cpu")
    landmarks[has_face] = found
    expression = strengths.new_zeros(len(frames), strengths.shape[1])
    expression[has_face] = strengths
    return motion.measure(landmarks, motion.head_template(), expression)


def _read_windows(frames: Tensor, window: Tensor, regressor: AttributeRegressor) -> tuple[Tensor, Tensor]:
    """Frames (T, H, W, 3) and their windows (T, 3) → landmarks (T, 68, 2) px and expressions (T, 50), on the CPU."""
    scale = SIZE / window[:, 2]
    corner = window[:, :2] - window[:, 2:] / 2
    to_crop = torch.cat([torch.diag_embed(scale[:, None].expand(-1, 2)), (-corner * scale[:, None])[..., None]], 2)
    crops = torch.cat(
        [warp(frame[None], one[None].to(frame), SIZE) for frame, one in zip(frames, to_crop, strict=True)]
    )
    reading = read_attributes(regressor, crops)
    return (reading.landmarks.cpu() * SIZE - 0.5) / scale[:, None, None] + corner[:, None], reading.expression.cpu()


def motion_report(motion: Motion, *more: str) -> str:
    """The numbers in words, then `more` lines: what else was read, and how."""
    lines = [
        f"Face motion {motion.face:.2f} % of the distance between the eyes (root mean square, head motion removed), "
        f"{motion.lasting:.2f} % of what lasts to the next frame.",
        f"Head motion {motion.head:.1f}° of rotation, {motion.shift:.1f} % of the eyes' distance of shift.",
        _report_skipped(motion.face_per_frame.isfinite()),
        *more,
    ]
    return "\n".join(line for line in lines if line)


def motion_plot(motion: Motion) -> Tensor:
    """(640, 640, 3) float 0…1: face motion above, the head's pose below, over the frames."""
    face = chart(
        f"Face motion, % of the eyes' distance (rms {motion.face:.2f})", {"face": motion.face_per_frame.tolist()}, 0, 5
    )
    curves: dict[str, list[float]] = dict(zip(("yaw", "pitch", "roll"), motion.pose.T.tolist(), strict=True))
    head = chart(f"Head pose, degrees (rms {motion.head:.1f} about its mean)", curves, -30, 30)
    return torch.cat([face, head])


def face_windows(landmarks: Tensor, width: float, offset: float) -> Tensor:
    """Five landmarks per frame (T, 5, 2) px → centre x, y and side (T, 3) of the square that the regressor reads.

    One window for the whole clip, as a cut would be, unless the face wanders; NaN where there is no face.

    Args:
        width, offset: `AttributeRegressor.framing`.
    """
    has_face = landmarks.isfinite().flatten(1).all(1)
    eyes, unit = _eyes(landmarks)
    below = torch.stack([torch.zeros_like(unit), offset * unit], 1)
    per_frame = torch.cat([eyes + below, width * unit[:, None]], 1)
    if not has_face.any():
        return per_frame
    median = per_frame[has_face].median(0).values
    wander = (per_frame[has_face, :2] - median[:2]).norm(dim=1).max()
    return per_frame if wander > _WANDER_LIMIT * median[2] else torch.where(has_face[:, None], median, per_frame)


def framing(landmarks: Tensor, size: int) -> tuple[float, float]:
    """Landmarks (T, 5, 2) px of square frames → their `AttributeRegressor.framing`, in the median."""
    eyes, unit = _eyes(landmarks)
    below = ((size - 1) / 2 - eyes[:, 1]) / unit
    return round(float(size / unit.median()), 3), round(float(below.median()), 3)


def _eyes(landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Landmarks (T, 5, 2) → the middle between the eyes (T, 2) and their distance (T,), were they seen from the front.

    A turned head's eyes come closer and a nodding one's mouth, so the larger of both tells the size.
    """
    eyes, mouth = landmarks[:, :2].mean(1), landmarks[:, 3:].mean(1)
    down = (mouth - eyes).norm(dim=1) / 1.04  # eye distances in a face from the front
    return eyes, torch.maximum((landmarks[:, 1] - landmarks[:, 0]).norm(dim=1), down)


def check_video(frames: Tensor) -> None:
    """Raise ImageError where `frames` are not at least two frames (T, H, W, C)."""
    _check_frames(frames)
    if len(frames) < 2:
        raise ImageError(
            "One frame cannot show motion; expected a video of at least 2 frames. Connect all frames of the video."
        )


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or not len(frames):
        raise ImageError(
            f"The frames have shape {tuple(frames.shape)}; expected a batch (frames, height, width, channels). "
            "Connect the frames of one video."
        )


def _report_skipped(shown: Tensor) -> str:
    missing = int((~shown).sum())
    return f"{missing} of {len(shown)} frames show no face and were left out." if missing else ""
