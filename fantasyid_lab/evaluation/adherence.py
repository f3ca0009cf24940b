"""Whether a video does what its prompt says: turn, expressions, colours, as the attribute regressor reads them.

What the prompt leaves open does not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fantasyid_core.meters.attribute_regressor import AttributeReading

from ..people.colours import COLOURS
from ..people.head import load as load_head
from ..people.motion import ClipLabels

EXPRESSIONS = ("smile", "talk", "brows")
# Half-way between what clips with and without the action show (`people.motion`), were they read without error.
_TURN = 12.0  # degrees between the beginning and the second half
_TRUE = {"smile": 0.45, "talk": 0.15, "brows": 0.4}
_BROWS = ("browInnerUp", "browOuterUpLeft", "browOuterUpRight")


@dataclass(frozen=True)
class VideoAttributes:
    """What a video shows, as the attribute regressor reads it.

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


def read(reading: AttributeReading, limits: Mapping[str, float] | None = None) -> VideoAttributes:
    """What one video's frames (T, …) show.

    Args:
        limits: `amounts` above which an action is shown, as `thresholds` gives them for the attribute regressor;
            otherwise those of a regressor without error.
    """
    limits = _TRUE | dict(limits or {})
    happens = {name: amount > limits[name] for name, amount in amounts(reading.expression).items()}
    names = list(COLOURS)
    return VideoAttributes(
        turn=turn_of(reading.pose[:, 0]),
        **happens,
        shirt=names[int(reading.shirt.mean(0).argmax())],
        background=names[int(reading.background.mean(0).argmax())],
    )


def amounts(expression: Tensor) -> dict[str, float]:
    """Strengths (T, 50) of a clip's frames → how much of each of `EXPRESSIONS` it shows.

    A smile is where the clip ends. Talking is how far the jaw's opening ranges, and raised brows how far the brows'
    height does, as a person's own brows may be high.
    """
    strength = dict(zip(load_head().expressions, expression.float().cpu().unbind(1), strict=True))
    end = slice(len(expression) * 2 // 3, None)
    smile = (strength["mouthSmileLeft"] + strength["mouthSmileRight"])[end].mean() / 2
    jaw = strength["jawOpen"]
    brows = (sum(strength[name] for name in _BROWS) / len(_BROWS)).sort().values
    fifth = max(1, len(brows) // 5)
    return {
        "smile": float(smile),
        "talk": float(jaw.quantile(0.95) - jaw.quantile(0.05)),
        "brows": float(brows[-fifth:].mean() - brows[:fifth].mean()),
    }


def thresholds(read: Sequence[Tensor], true: Sequence[Tensor]) -> dict[str, float]:
    """For each of `EXPRESSIONS` the amount half-way between what the regressor reads, in the median, from clips with
    and without it. A regressor that is not sure of an action reads less of it than there is.

    Args:
        read, true: strengths (T, 50) of the same clips, as the attribute regressor reads them and as they are.
    """
    amounts_read, amounts_true = ([amounts(one) for one in clips] for clips in (read, true))
    found = {}
    for name, limit in _TRUE.items():
        values = torch.tensor([one[name] for one in amounts_read])
        shown = torch.tensor([one[name] > limit for one in amounts_true])
        if shown.any() and not shown.all():
            found[name] = float((values[shown].median() + values[~shown].median()) / 2)
    return found


def turn_of(yaw: Tensor) -> str | None:
    """Yaw (T,) in degrees → where the head turns in the second half of the clip, seen from its beginning."""
    start = yaw[: max(1, len(yaw) // 8)].median()
    later = yaw[len(yaw) // 2 :].median()
    change = float(later - start)
    if abs(change) < _TURN:
        return None
    return "right" if change > 0 else "left"


def compare(shown: Sequence[VideoAttributes], labels: Sequence[ClipLabels], stated: Sequence[set[str]]) -> Adherence:
    """N videos against their prompts.

    Args:
        labels: what is true of the clips that the prompts describe.
        stated: which of the labels each prompt states. One that is not stated and not true is taken as excluded.
    """
    rows = list(zip(shown, labels, stated, strict=True))

    def share(name: str, stated_only: bool) -> float:
        return _mean(
            getattr(s, name) == getattr(label, name)
            for s, label, stated_names in rows
            if (name in stated_names if stated_only else not getattr(label, name))
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
