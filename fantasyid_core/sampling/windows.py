"""Videos longer than the model was trained on: overlapping windows of the length it knows, blended where they overlap.

At every denoising step each window is predicted alone, so time grows with the length and memory does not. All windows
see the same identity.
"""

from dataclasses import dataclass

from ..dit.config import TIME_SCALE
from ..errors import SamplingError


@dataclass(frozen=True)
class Windows:
    """Windows over the latent frames of a video.

    Attributes:
        length: latent frames that the model sees at once.
        overlap: latent frames that neighbours share, at least.
        anchored: whether each later window begins with the video's first latent frame. A model that was trained with
            the reference as first frame needs one; what it predicts there counts in the first window only.
    """

    length: int
    overlap: int
    anchored: bool = False

    def over(self, frames: int) -> list[list[int]]:
        """The latent frames of each window, in order, spread evenly over a video of so many latent frames."""
        if frames <= self.length:
            return [list(range(frames))]
        first, own = int(self.anchored), self.length - self.anchored
        count = -(-(frames - first - self.overlap) // (own - self.overlap))
        starts = [first + round(i * (frames - first - own) / (count - 1)) for i in range(count)]
        return [[0] * first + list(range(start, start + own)) for start in starts]

    def weights(self, window: list[int]) -> list[float]:
        """How much each frame of a window counts, before they are normalised over the windows: less at its ends."""
        anchor = self.anchored and window != list(range(len(window)))
        own = len(window) - anchor
        ramp = [min(i + 1, own - i, self.overlap + 1) / (self.overlap + 1) for i in range(own)]
        return [0.0] * anchor + ramp


def windows(frames: int, overlap: int, anchored: bool = False) -> Windows:
    """Windows from numbers of frames of the video, not of latents.

    Args:
        frames: of a window: a multiple of 4 plus 1.
        overlap: that neighbours share, rounded up to whole latents.

    Raises:
        SamplingError: no such window, or an overlap that leaves a window nothing of its own.
    """
    if frames < 1 or (frames - 1) % TIME_SCALE:
        raise SamplingError(
            f"A window's frames must be a multiple of 4 plus 1, such as 25 or 49; got {frames}. "
            "Set the window to one of these."
        )
    length = (frames - 1) // TIME_SCALE + 1
    shared = -(-overlap // TIME_SCALE)
    if overlap < 0 or shared >= length - anchored:
        raise SamplingError(
            f"Windows of {frames} frames cannot overlap by {overlap}: expected 0 to "
            f"{max(0, TIME_SCALE * (length - anchored - 1))}. About a third of a window is usual. "
            "Set the overlap to that."
        )
    return Windows(length, shared, anchored)
