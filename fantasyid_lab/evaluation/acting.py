"""Whether a face does what somebody else's performance says, with a prompt that says nothing of it.

In every case the person performs what the next case's clip shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.meters.attribute_regressor import AttributeReading, AttributeRegressor, read_attributes
from fantasyid_core.reconstruction.flame import Flame
from fantasyid_core.reconstruction.performance import Performance, basis_of

from ..people.caption import caption
from ..people.clip import Clip
from ..people.head import load as load_head
from ..people.motion import FPS
from . import cases
from .cases import Case

CURVES = ("yaw", "pitch", "roll", "jaw", "smile")


@dataclass(frozen=True, eq=False)
class ActingCase:
    """performed: the person's clip with the other's motion, which the model never sees; prompt: who and where alone."""

    performed: Clip
    prompt: str


def cast(drawn_cases: Sequence[Case]) -> list[ActingCase]:
    """Who performs what."""
    found = []
    for case, other in zip(drawn_cases, [*drawn_cases[1:], drawn_cases[0]], strict=True):
        own, does = case.target, other.target
        rng = np.random.default_rng([own.person.seed, own.seed, 5])
        prompt = caption(rng, own.person, own.scene, own.labels, tells_motion=False)
        performed = replace(own, pose=does.pose, expression=does.expression, caption=prompt, labels=does.labels)
        found.append(ActingCase(performed, prompt))
    return found


def performance_of(clip: Clip, face: Flame) -> Performance:
    """What a clip's face does, without error, as FantasyID Capture would give it."""
    frames = clip.frames
    expression, pose = (torch.from_numpy(values).float() for values in (clip.expression, clip.pose))
    return Performance(expression, torch.zeros(frames, 3), pose, torch.ones(frames), float(FPS), basis_of(face))


def read_truth(
    acting_cases: Sequence[ActingCase], regressor: AttributeRegressor, device: torch.device | str = "cpu"
) -> list[AttributeReading]:
    """What the attribute regressor reads in true renders of the performances."""
    frames = cases.show([case.performed for case in acting_cases], device).frames
    return [read_attributes(regressor, one) for one in frames]


def correlations(acting_cases: Sequence[ActingCase], readings: Sequence[AttributeReading]) -> dict[str, float]:
    """Of each of `CURVES`, over the frames of all videos: the correlation of what is read with the performance."""
    performed = [(case.performed.pose, case.performed.expression) for case in acting_cases]
    true = torch.cat([_curves(*(torch.from_numpy(values).float() for values in one)) for one in performed])
    read = torch.cat([_curves(r.pose.float().cpu(), r.expression.float().cpu()) for r in readings])
    return {name: _correlation(read[:, i], true[:, i]) for i, name in enumerate(CURVES)}


def _curves(pose: Tensor, expression: Tensor) -> Tensor:
    """(T, 5) in the order of `CURVES`: degrees, and strengths 0…1."""
    strength = dict(zip(load_head().expressions, expression.unbind(1), strict=True))
    smile = (strength["mouthSmileLeft"] + strength["mouthSmileRight"]) / 2
    return torch.stack([*pose.unbind(1), strength["jawOpen"], smile], 1)


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of (n,) each; NaN where one of them is constant."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])
