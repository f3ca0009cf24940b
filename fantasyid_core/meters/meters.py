"""Meters for any video: how like a reference the face is, and how much face and head move, frame by frame."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FaceNotFoundError, ImageError
from . import likeness, motion
from .attribute_regressor import SIZE, AttributeRegressor, look
from .embedding import Embedding, embed, locate, warp
from .motion import Motion
from .plot import chart

# Of the window's side: a face that wanders further from its usual place is followed frame by frame.
_WANDERS = 0.15

Progress = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Likeness:
    """How like a reference a video's face is.

    Attributes:
        similarity: (T,) cosine −1…1, NaN where a frame shows no face.
        mean: over the frames with a face; between_frames: of neighbouring frames with each other.
        same_person: similarity above which the embedding's authors take two faces for one person.
        embedding: its name.
    """

    similarity: Tensor
    mean: float
    between_frames: float
    same_person: float
    embedding: str

    @property
    def report(self) -> str:
        """The numbers in words, a line per frame."""
        shown = self.similarity.isfinite()
        lines = [
            f"Similarity to the reference ({self.embedding}): mean {self.mean:.3f}, "
            f"lowest {float(self.similarity[shown].min()):.3f}; the same person from about {self.same_person:g}.",
            f"Similarity of neighbouring frames: {self.between_frames:.3f}.",
            _skipped(shown),
        ]
        frames = [f"{i}: {v:.3f}" if v == v else f"{i}: no face" for i, v in enumerate(self.similarity.tolist())]
        return "\n".join([*(line for line in lines if line), *frames])

    @property
    def plot(self) -> Tensor:
        """(320, 640, 3) float 0…1: similarity over the frames."""
        title = f"Similarity to the reference ({self.embedding}), mean {self.mean:.3f}"
        marks = {"same person": self.same_person}
        return chart(title, {"similarity": self.similarity.tolist()}, min(0.5, self.same_person - 0.3), 1.0, marks)


def likeness_of(
    frames: Tensor,
    reference: Tensor,
    reference_landmarks: Tensor | None,
    embedding: Embedding,
    device: torch.device | str | None = None,
    progress: Progress = lambda: None,
) -> Likeness:
    """Compare the largest face of every frame with a reference face.

    Args:
        frames: (T, H, W, C) as `images.as_photo` takes each.
        reference: (H, W, C), the photo of the person.
        reference_landmarks: (5, 2) px of the face in it, or None: its largest.
        device, progress: as for `embedding.locate`.

    Raises:
        FaceNotFoundError: the reference, or every frame, shows no face.
        ImageError: a picture cannot be used.
    """
    _check_frames(frames)
    own = embed(embedding, [reference], None if reference_landmarks is None else reference_landmarks[None])
    if not own.found.any():
        raise FaceNotFoundError("The reference shows no face to compare with. Use a photo with an upright, lit face.")
    seen = embed(embedding, frames, locate(frames, device=device, progress=progress))
    if not seen.found.any():
        raise FaceNotFoundError(
            f"None of the {len(frames)} frames shows a face, so there is nothing to compare. "
            "Use a video in which the face is seen."
        )
    similarity = likeness.reference_similarity(seen.vectors, own.vectors[0])
    return Likeness(
        similarity,
        float(similarity.nanmean()),
        likeness.inter_frame_similarity(seen.vectors),
        embedding.same_person,
        embedding.name,
    )


def motion_of(
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
    _check_frames(frames)
    if len(frames) < 2:
        raise ImageError(
            "One frame cannot show motion; expected a video of at least 2 frames. Connect all frames of the video."
        )
    frames = frames[..., :3].float()
    window = windows(locate(frames, device=device, progress=progress), *regressor.framing)
    seen = window.isfinite().all(1)
    if seen.sum() < 2:
        raise FaceNotFoundError(
            f"Only {int(seen.sum())} of the {len(frames)} frames show a face; expected at least 2. "
            "Use a video in which the face is seen."
        )
    window = window[seen]
    scale = SIZE / window[:, 2]
    corner = window[:, :2] - window[:, 2:] / 2
    to_crop = torch.cat([torch.diag_embed(scale[:, None].expand(-1, 2)), (-corner * scale[:, None])[..., None]], 2)
    crops = torch.cat(
        [warp(frame[None], one[None].to(frame), SIZE) for frame, one in zip(frames[seen], to_crop, strict=True)]
    )
    reading = look(regressor, crops)
    unit, strengths = reading.landmarks.cpu(), reading.expression.cpu()
    landmarks = frames.new_full((len(frames), *unit.shape[1:]), float("nan"), device="cpu")
    landmarks[seen] = (unit * SIZE - 0.5) / scale[:, None, None] + corner[:, None]
    expression = strengths.new_zeros(len(frames), strengths.shape[1])
    expression[seen] = strengths
    return motion.measure(landmarks, motion.head_template(), expression)


def motion_report(found: Motion) -> str:
    """The numbers in words."""
    lines = [
        f"Face motion {found.face:.2f} % of the distance between the eyes (root mean square, head motion removed), "
        f"{found.lasting:.2f} % of what lasts to the next frame.",
        f"Head motion {found.head:.1f}° of rotation, {found.shift:.1f} % of the eyes' distance of shift.",
        _skipped(found.face_per_frame.isfinite()),
    ]
    return "\n".join(line for line in lines if line)


def motion_plot(found: Motion) -> Tensor:
    """(640, 640, 3) float 0…1: face motion above, the head's pose below, over the frames."""
    face = chart(
        f"Face motion, % of the eyes' distance (rms {found.face:.2f})", {"face": found.face_per_frame.tolist()}, 0, 5
    )
    curves: dict[str, list[float]] = dict(zip(("yaw", "pitch", "roll"), found.pose.T.tolist(), strict=True))
    head = chart(f"Head pose, degrees (rms {found.head:.1f} about its mean)", curves, -30, 30)
    return torch.cat([face, head])


def windows(landmarks: Tensor, wide: float, below: float) -> Tensor:
    """Five landmarks per frame (T, 5, 2) px → centre x, y and side (T, 3) of the square that the regressor reads.

    One window for the whole clip, as a cut would be, unless the face wanders; NaN where there is no face.

    Args:
        wide, below: `AttributeRegressor.framing`.
    """
    seen = landmarks.isfinite().flatten(1).all(1)
    eyes, unit = _eyes(landmarks)
    side = wide * unit
    offset = torch.stack([torch.zeros_like(unit), below * unit], 1)
    own = torch.cat([eyes + offset, side[:, None]], 1)
    usual = own[seen].median(0).values if seen.any() else own[0]
    wanders = (own[seen, :2] - usual[:2]).norm(dim=1).max() > _WANDERS * usual[2] if seen.any() else False
    return own if wanders else torch.where(seen[:, None], usual, own)


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


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or not len(frames):
        raise ImageError(
            f"The frames have shape {tuple(frames.shape)}; expected a batch (frames, height, width, channels). "
            "Connect the frames of one video."
        )


def _skipped(shown: Tensor) -> str:
    missing = int((~shown).sum())
    return f"{missing} of {len(shown)} frames show no face and were left out." if missing else ""
