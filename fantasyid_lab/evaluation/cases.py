"""What is asked of a model: prompts and reference photos of people whom no training saw, and the truth beside them."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fantasyid_core.errors import FantasyIDError

from ..people.clip import Clip, clip, still
from ..people.person import TEST, person
from ..people.render import RenderedClips, render

SIZE, FRAMES = 160, 25


@dataclass(frozen=True, eq=False)
class Case:
    """One person and one prompt.

    Attributes:
        reference: the photo, one frame.
        target: the clip that the prompt (its caption) describes, of the same person; the model never sees it.
        gallery: another clip of the person, to be found among others.
        stranger: a clip of someone else.
    """

    reference: Clip
    target: Clip
    gallery: Clip
    stranger: Clip


def draw(people: int, seed: int = 0, frames: int = FRAMES, split: range = TEST) -> list[Case]:
    """Cases of `people` different people of a split; the same seed draws the same.

    Raises:
        FantasyIDError: fewer than two, or more than there are.
    """
    first, strangers = seed * people, len(split) // 2  # the second half only ever appears as strangers
    if people < 2 or not 0 <= first <= strangers - people:
        raise FantasyIDError(
            f"{people} people with seed {seed} cannot be drawn: expected at least 2, and people × (seed + 1) at most "
            f"{strangers}."
        )
    cases = []
    for number in range(first, first + people):
        one, other = person(split[number]), person(split[strangers + number])
        cases.append(Case(still(one, 1), clip(one, 2, frames), clip(one, 3, frames), clip(other, 4, frames)))
    return cases


def photos(case: Case, count: int) -> list[Clip]:
    """The reference and further photos of the person, `count` in all."""
    return [case.reference, *(still(case.reference.person, 1 + k) for k in range(1, count))]


def show(clips: list[Clip], device: torch.device | str = "cpu", batch: int = 8, stride: int = 1) -> RenderedClips:
    """Render clips at 160 px, `batch` at a time, every so many frames of each; results on the CPU."""
    parts = []
    for start in range(0, len(clips), batch):
        chosen = [thinned(one, stride) for one in clips[start : start + batch]]
        parts.append(render(chosen, SIZE, device=device))
    names = [field.name for field in fields(RenderedClips)]
    return RenderedClips(*(torch.cat([getattr(part, name).cpu() for part in parts]) for name in names))


def thinned(one: Clip, stride: int) -> Clip:
    """The clip with every so many of its frames."""
    return replace(one, pose=one.pose[::stride], expression=one.expression[::stride], camera=one.camera[::stride])


def as_bytes(frames: Tensor) -> Tensor:
    """Frames in 0…1 → uint8."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8)
