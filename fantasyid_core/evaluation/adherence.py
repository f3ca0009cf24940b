"""Whether a video does what its prompt says: turn, expressions, colours, read from its frames by the judge.

What the prompt leaves open does not count, nor do frames decide what was asked: that are the prompt's words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..people.colours import COLOURS
from ..people.head import load as load_head
from ..people.motion import ClipLabels
from .judge import JudgeReading

EXPRESSIONS = ("smile", "talk", "brows")
# Half-way between what clips with and without the action show (`people.motion`).
_TURN = 12.0  # degrees between the beginning and the second half
_SMILE, _BROWS, _JAW = 0.45, 0.4, 0.15


@dataclass(frozen=True)
class Shown:
    """What a video shows, as the judge reads it.

    Attributes:
        turn: "left", "right" (in the picture) or None.
        smile, talk, brows: whether it happens.
        shirt, background: names of `people.colours.COLOURS`.
    """

    turn: str | None
    smile: bool
    talk: bool
    brows: bool
    shirt: str
    background: str


@dataclass(frozen=True)
class Adherence:
    """Shares 0…1 over N videos; NaN where no prompt asked for such a thing.

    Attributes:
        turn: of the prompts that ask for a turn, those whose video turns that way (half of them by guessing a side).
        stays: of the prompts without a turn, those whose video does not turn.
        expression: mean over `EXPRESSIONS` of the mean of `shown` and `not_added`: 0.5 by always or never doing it.
        shown: by expression, of the prompts that ask for it, those whose video shows it.
        not_added: by expression, of the prompts that exclude it, those whose video does without.
        shirt, background: of the prompts that name the colour, those whose video has it.
    """

    turn: float
    stays: float
    expression: float
    shown: dict[str, float]
    not_added: dict[str, float]
    shirt: float
    background: float


def read(reading: JudgeReading) -> Shown:
    """What one video's frames (T, …) show."""
    strength = dict(zip(load_head().expressions, reading.expression.float().cpu().unbind(1), strict=True))
    end = slice(len(reading.pose) * 2 // 3, None)
    smile = (strength["mouthSmileLeft"] + strength["mouthSmileRight"])[end].mean() / 2
    brows = strength["browInnerUp"].topk(max(1, len(reading.pose) // 5)).values.mean()
    jaw = strength["jawOpen"]
    names = list(COLOURS)
    return Shown(
        turn=turn_of(reading.pose[:, 0]),
        smile=bool(smile > _SMILE),
        talk=bool(jaw.quantile(0.95) - jaw.quantile(0.05) > _JAW),
        brows=bool(brows > _BROWS),
        shirt=names[int(reading.shirt.mean(0).argmax())],
        background=names[int(reading.background.mean(0).argmax())],
    )


def turn_of(yaw: Tensor) -> str | None:
    """Yaw (T,) in degrees → where the head turns in the second half of the clip, seen from its beginning."""
    start = yaw[: max(1, len(yaw) // 8)].median()
    later = yaw[len(yaw) // 2 :].median()
    change = float(later - start)
    if abs(change) < _TURN:
        return None
    return "right" if change > 0 else "left"


def compare(shown: Sequence[Shown], labels: Sequence[ClipLabels], told: Sequence[set[str]]) -> Adherence:
    """N videos against their prompts.

    Args:
        labels: what is true of the clips that the prompts describe.
        told: which of the labels each prompt says. One that is not told and not true is taken as excluded.
    """
    rows = list(zip(shown, labels, told, strict=True))

    def share(name: str, asked: bool) -> float:
        return _mean(
            getattr(s, name) == getattr(label, name)
            for s, label, words in rows
            if (name in words if asked else not getattr(label, name))
        )

    positive = {name: share(name, True) for name in EXPRESSIONS}
    negative = {name: share(name, False) for name in EXPRESSIONS}
    sides = torch.tensor([[positive[name], negative[name]] for name in EXPRESSIONS])
    return Adherence(
        turn=share("turn", True),
        stays=share("turn", False),
        expression=float(sides.nanmean()),
        shown=positive,
        not_added=negative,
        shirt=share("shirt", True),
        background=share("background", True),
    )


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")
