"""FaceSim as ConsisID and OpenS2V-Eval measure it: how like a reference photo the faces of a video are.

Both take frames at equal distances, the largest face of each, and the mean of the cosines that are clipped at 0. Frames
without a face are skipped, so a video that hides the face is not punished: the share of frames with one is told beside.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..errors import FaceNotFoundError, ImageError
from .plot import chart

ARC, CUR = "FaceSim-Arc", "FaceSim-Cur"
GREY = 128
QUARTER = 0.25

Picture = Tensor
"""(H, W, 3) uint8 RGB."""
FaceVectors = Mapping[str, Tensor]
"""Name of a measure → the vector (D,) of a picture's largest face."""
ReadFace = Callable[[Picture], FaceVectors | None]
"""The largest face of a picture, looked for again with grey around it (`pad`); None where there is none."""


@dataclass(frozen=True)
class Protocol:
    """A benchmark's way to measure FaceSim.

    Attributes:
        name: as the commands and nodes call it.
        title: as its paper calls it.
        frames: how many are taken of each video.
        drops_zero: measures whose frames of similarity 0 do not count.
    """

    name: str
    title: str
    frames: int
    drops_zero: frozenset[str] = frozenset()

    def frames_of(self, total: int) -> list[int]:
        """Which frames of a video of `total` are measured; a short video's are measured several times."""
        return np.linspace(0, total - 1, self.frames, dtype=int).tolist()


CONSISID = Protocol("consisid", "ConsisID", 16)
OPENS2V = Protocol("opens2v", "OpenS2V-Eval", 32, frozenset({CUR}))
PROTOCOLS = {protocol.name: protocol for protocol in (CONSISID, OPENS2V)}


@dataclass(frozen=True)
class FaceSim:
    """What a protocol says of one video.

    Attributes:
        protocol: which.
        cosines: measure → of each measured frame, clipped, 0…1; NaN where it shows no face.
        between_frames: mean cosine of neighbouring measured frames by the first measure; NaN without a pair.
    """

    protocol: Protocol
    cosines: Mapping[str, Sequence[float]]
    between_frames: float

    @property
    def similarity(self) -> dict[str, float]:
        """Measure → mean of the cosines that count, 0…1; 0 where none does."""
        return {name: _mean(values, name in self.protocol.drops_zero) for name, values in self.cosines.items()}

    @property
    def with_face(self) -> float:
        """Share of the measured frames that show a face, 0…1."""
        values = next(iter(self.cosines.values()))
        return sum(not math.isnan(value) for value in values) / len(values)

    @property
    def report(self) -> str:
        """The numbers in words."""
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in self.similarity.items())
        return (
            f"{numbers}, as {self.protocol.title} measures: {self.protocol.frames} frames at equal distances, the mean "
            f"of the cosines, those below 0 as 0. {self.with_face:.0%} of the frames show a face; the others are "
            "skipped, so that a video which hides the face is not punished."
        )

    @property
    def plot(self) -> Tensor:
        """(320, 640, 3) float 0…1: the cosines over the measured frames."""
        return chart(f"{self.protocol.title}: cosine to the reference", self.cosines, 0.0, 1.0)


def measure_facesim(
    protocol: Protocol, reference: Picture, frames: Iterable[Picture], read_face: ReadFace, what: str = "the reference"
) -> FaceSim:
    """A video against a photo of its person.

    Args:
        reference: the photo.
        frames: those that `protocol.frames_of` names.
        read_face: what finds and embeds a face.
        what: how the error calls the photo.

    Raises:
        FaceNotFoundError: the photo shows no face.
        ImageError: there are no frames.
    """
    person = read_face(reference)
    if person is None:
        raise FaceNotFoundError(
            f"No face was found in {what}, so there is nothing to compare with. Use a photo that shows the face."
        )
    faces = [read_face(frame) for frame in frames]
    if not faces:
        raise ImageError("The video has no frames: use one with at least one.")
    cosines = {
        name: [_cosine(vector, None if face is None else face[name]) for face in faces]
        for name, vector in person.items()
    }
    first = next(iter(person))
    neighbours = [_cosine(a[first], b[first]) for a, b in pairwise(faces) if a is not None and b is not None]
    return FaceSim(protocol, cosines, math.fsum(neighbours) / len(neighbours) if neighbours else math.nan)


def _cosine(person: Tensor, face: Tensor | None) -> float:
    return math.nan if face is None else max(0.0, float(F.cosine_similarity(person, face, dim=0)))


def _mean(cosines: Sequence[float], drops_zero: bool) -> float:
    counted = [cosine for cosine in cosines if not math.isnan(cosine) and (cosine or not drops_zero)]
    return math.fsum(counted) / len(counted) if counted else 0.0


def pad(picture: Picture) -> Picture:
    """(H, W, 3) → (H + 2 ⌊H / 4⌋, W + 2 ⌊W / 4⌋, 3), grey around it."""
    height, width = (int(side * QUARTER) for side in picture.shape[:2])
    return F.pad(picture, (0, 0, width, width, height, height), value=GREY)
