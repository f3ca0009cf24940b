"""Does a person stay that person as the video goes on: similarity by second, and its trend."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Drift:
    """How a measure of likeness changes over a video.

    Attributes:
        by_second: mean of each second's frames that count, NaN where none does.
        worst: number of the second that is least like the reference, from 0.
        slope: of the straight line nearest to all frames that count, per second; 0 with fewer than two.
        face_share: share of the frames that count, 0…1.
        falls: whether less of the measure is more alike, as with distances.
    """

    by_second: tuple[float, ...]
    worst: int
    slope: float
    face_share: float
    falls: bool

    def __str__(self) -> str:
        values = " ".join("no face" if value != value else f"{value:.3f}" for value in self.by_second)
        towards = "nothing" if not self.slope else "the person" if (self.slope < 0) == self.falls else "somebody else"
        return (
            f"By second: {values}. Worst is second {self.worst} with {self.by_second[self.worst]:.3f}; "
            f"trend {self.slope:+.4f} a second, towards {towards}. A face counts in {self.face_share:.0%} of frames."
        )


def measure_drift(measured: Tensor, fps: float, falls: bool) -> Drift:
    """The drift of a measure (T,) by frame, NaN where a frame shows no clear face; some frame must show one.

    Args:
        fps: frames per second, above 0.
        falls: see `Drift`.
    """
    counts = measured.isfinite()
    second = (torch.arange(len(measured)) / fps).floor().long()
    by_second = torch.stack([measured[second == s].nanmean() for s in range(int(second[-1]) + 1)])
    found = by_second.isfinite()
    worst = torch.where(found, by_second if falls else -by_second, -torch.inf).argmax()
    seconds, values = torch.arange(len(measured))[counts] / fps, measured[counts].float()
    spread = seconds - seconds.mean()
    slope = float((spread * values).sum() / spread.square().sum()) if len(values) > 1 else 0.0
    return Drift(tuple(by_second.tolist()), int(worst), slope, float(counts.double().mean()), falls)
