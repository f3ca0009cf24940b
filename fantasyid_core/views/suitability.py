"""Whether a photo's face will do as a reference: good, usable or not, and why.

The thresholds and how often they err: docs/detection.md. There is no model of hands, glasses or animals here: what does
not look like an open face to the detector (its score) and by its gradients is said to be covered or no person's, and
dark glasses are told by the grey around the eyes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..detection.faces import DetectedFace
from ..detection.quality import eye_brightness
from .appearance import face_likeness

GOOD, USABLE, UNUSABLE = "good", "usable", "will not work"
# Openness: 0 is what most open, frontal faces exceed, -2 what animals, masks and covered faces fall below.
_SCORE, _LIKENESS, _UNIT = 0.9, 0.82, 0.05
NO_FACE = -2.0
_PLAIN_SCORE = 0.905  # exceeded by people's open faces; good drawings and animals stay below
_DARK_EYES = 0.33  # of the skin's grey
_SIZE = (48, 80)  # px of the box's shorter side; below the first it will not work, below the second it is usable
_YAW, _PITCH = (50.0, 30.0), (40.0, 25.0)  # degrees, above which
_SHARPNESS = (0.15, 0.35)
_CUT_OFF = (0.25, 0.05)


_CURES = {
    GOOD: "",
    USABLE: " Look at the crop: an open face of a person, lit and from the front, does better.",
    UNUSABLE: " Cancel, and choose another photo.",
}


@dataclass(frozen=True)
class Suitability:
    """How well a face serves as a reference.

    Attributes:
        word: GOOD, USABLE or UNUSABLE.
        reasons: what stands against it, the worst first; empty for GOOD.
    """

    word: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.word + (f": {'; '.join(self.reasons)}" if self.reasons else "") + "." + _CURES[self.word]


def openness(faces: Sequence[DetectedFace]) -> Tensor:
    """How much each looks like a person's open face, (N,): below `NO_FACE` hardly."""
    if not faces:
        return torch.empty(0)
    scores = torch.tensor([face.score for face in faces])
    likeness = face_likeness(torch.stack([face.crop for face in faces])).cpu()
    return (scores - _SCORE) / _UNIT + (likeness - _LIKENESS) / _UNIT


def assess(face: DetectedFace) -> Suitability:
    """Whether the face will do, from how it looks, its size, pose and sharpness, and what the photo cuts off."""
    width = float((face.box[2:] - face.box[:2]).min())
    open_ = float(openness([face])[0])
    doubt = 2 if open_ < NO_FACE else int(face.score < _PLAIN_SCORE)
    plainness = "it hardly looks" if doubt == 2 else "it does not plainly look"
    eyes = float(eye_brightness(face.crop[None])[0])
    yaw, pitch = abs(face.pose.yaw), abs(face.pose.pitch)
    direction = "up" if face.pose.pitch > 0 else "down"
    checks = [  # (how bad it is, from where it will not work, from where it is no longer good, why)
        (doubt, 1, 0, f"{plainness} like an open face of a person"),
        (-eyes, -_DARK_EYES, -_DARK_EYES, "dark glasses or deep shadow hide the eyes"),
        (-width, *(-px for px in _SIZE), f"it is only {width:.0f} px wide, and {_SIZE[1]} or more are good"),
        (yaw, *_YAW, f"it is turned by {yaw:.0f}° to the side"),
        (pitch, *_PITCH, f"it looks {direction} by {pitch:.0f}°"),
        (-face.sharpness, *(-value for value in _SHARPNESS), "it is blurred"),
        (face.occlusion, *_CUT_OFF, f"the photo cuts off {face.occlusion:.0%} of it"),
    ]
    bad = [why for value, fails, _, why in checks if value > fails]
    weak = [why for value, fails, doubtful, why in checks if doubtful < value <= fails]
    return Suitability(UNUSABLE if bad else USABLE if weak else GOOD, (*bad, *weak))
