"""The motion of a real face in a video, by its dense landmarks: they are followed, and a face model is fitted to them.

What the face model's expressions do counts as the face's own motion, as it does where the attribute regressor reads
them (`motion`); no network here has learned from synthetic people. Measured in docs/evaluation.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..detection import dense_pose
from ..detection.face_contours import eye_opening, mouth_opening
from ..detection.face_track import FaceTrack, follow
from ..detection.head_pose import rotation
from ..errors import FaceNotFoundError
from ..reconstruction.flame import Flame
from ..reconstruction.performance import Performance, capture
from . import motion
from .motion import Motion

_FPS = 24.0  # how long a lost face is searched in every frame; nothing that is measured depends on it
_CLOSED, _OPEN = 0.5, 0.75  # of how far the eyes are open; in which share of the frames they are so at most


@dataclass(frozen=True, eq=False)
class LandmarkMotion:
    """What a followed face does in a clip of T frames.

    Attributes:
        motion: as `motion.measure` has it.
        mouth: (T,) how far the mouth is open, in widths of the mouth; NaN without a face.
        eyes: (T,) how far the eyes are open, in widths of the eyes, the mean of both.
    """

    motion: Motion
    mouth: Tensor
    eyes: Tensor

    @property
    def blinks(self) -> int:
        """How often the eyes close."""
        eyes = self.eyes[self.eyes.isfinite()]
        closed = eyes < _CLOSED * eyes.quantile(_OPEN)
        return int((closed[1:] & ~closed[:-1]).sum()) + int(closed[0])

    @property
    def report(self) -> str:
        """Mouth and eyes in a sentence."""
        mouth = self.mouth[self.mouth.isfinite()]
        times = {0: "The eyes do not close.", 1: "The eyes close once."}
        return (
            f"The mouth is open by {float(mouth.median()):.0%} of its width, at most {float(mouth.max()):.0%}. "
            + times.get(self.blinks, f"The eyes close {self.blinks} times.")
        )


@torch.no_grad()
def measure(
    frames: Tensor,
    model: Flame,
    device: torch.device | str | None = None,
    progress: Callable[[], None] = lambda: None,
) -> LandmarkMotion:
    """Follow the largest face of the first frame that has one, and take its motion apart.

    Args:
        frames: (T, H, W, C), T ≥ 2, as `images.as_photo` takes each.
        model: a face model that knows its dense landmarks and has the expressions of `motion.head_template`, as
            FantasyID-nano's has.
        device: where the detector and the landmark network run.
        progress: called after every frame.

    Raises:
        FaceNotFoundError: fewer than two frames show the face.
        ImageError: none of the frames can be used.
    """
    track = follow(frames, _FPS, smooth=False, device=device, progress=lambda _: progress())
    if (seen := int(track.present.sum())) < 2:
        raise FaceNotFoundError(
            f"Only {seen} of the {len(frames)} frames show a face; expected at least 2. "
            "Use a video in which the face is seen."
        )
    performance = capture(model, track, smooth=False)
    found = motion.measure(_landmarks(track, performance), motion.head_template(), performance.expression)
    return LandmarkMotion(found, mouth_opening(track.points), eye_opening(track.points).mean(-1))


def _landmarks(track: FaceTrack, performance: Performance) -> Tensor:
    """(T, 68, 2) px, where the landmarks of the mean head are if it lies as the face does; NaN where that is unseen."""
    turn, flip = rotation(*performance.pose.float().unbind(-1)), torch.tensor([1.0, -1.0])
    dense = (dense_pose.template(torch.device("cpu")) @ turn.mT)[..., :2] * flip
    seen = track.points[..., :2]
    middle = seen.mean(1, keepdim=True)
    scale = ((seen - middle) * dense).sum((1, 2)) / dense.square().sum((1, 2))
    points = motion.head_template().points.float()
    return scale[:, None, None] * ((points - points.mean(0)) @ turn.mT)[..., :2] * flip + middle
