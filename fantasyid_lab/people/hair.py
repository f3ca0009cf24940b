"""How hair is worn: styles as lengths and thicknesses on the head, drawn by seed."""

from dataclasses import dataclass

import numpy as np

from .colours import linear

HAIR_COLOURS = {
    "black": (26, 22, 22),
    "dark brown": (48, 32, 24),
    "brown": (86, 56, 36),
    "light brown": (126, 84, 50),
    "blond": (204, 164, 100),
    "red": (146, 66, 32),
    "grey": (160, 156, 150),
    "white": (224, 221, 216),
}
"""Name → sRGB 0…255."""
STYLES = ("bald", "buzzed", "short", "quiff", "curly", "cap", "bob", "long")
_LONG = ("bob", "long")
_SIZES = {  # style → thickness on top, at the sides and in front, m; curl
    "bald": (0.0, 0.0, 0.0, 0.0),
    "buzzed": (0.0025, 0.002, 0.0, 0.0),
    "short": (0.013, 0.005, 0.003, 0.1),
    "quiff": (0.018, 0.004, 0.016, 0.15),
    "curly": (0.034, 0.028, 0.008, 1.0),
    "cap": (0.020, 0.013, 0.006, 0.1),
    "bob": (0.015, 0.010, 0.002, 0.05),
    "long": (0.013, 0.008, 0.002, 0.05),
}


@dataclass(frozen=True, eq=False)
class Hair:
    """Hair of a clip; lengths in metres.

    Attributes:
        style: one of `STYLES`; name: the colour's.
        colour: (3,) float32 linear 0…1.
        cover: 0 bald … 1, opacity over the skin of the skull.
        line: how much further back the hairline lies; fringe: how far hair falls over the forehead, parting: x from
            where it does.
        top, side, front: thickness on top of the head, at its sides, and what is added above the forehead.
        curl: 0 smooth … 1 curly surface.
        long: 1 with a curtain of hair, down to the height `cut` (from the eyes, up), `spread` wider than the head.
        phase: where strands lie.
    """

    style: str
    name: str
    colour: np.ndarray
    cover: float
    line: float
    fringe: float
    parting: float
    top: float
    side: float
    front: float
    curl: float
    long: float
    cut: float
    spread: float
    phase: float


def draw_hair(rng: np.random.Generator, male: bool, age: float, ethnicity: np.ndarray, name: str | None = None) -> Hair:
    """Hair that suits a person (age 0 … 1, shares of African, Asian, European), of a colour if one is named."""
    if name is None:
        names = list(HAIR_COLOURS)
        if age > 0.72 and rng.random() < (age - 0.55) * 2:
            weights = [0, 0, 0, 0, 0, 0, 0.65, 0.35]
        elif ethnicity[0] + ethnicity[1] > 0.6:
            weights = [0.62, 0.28, 0.1, 0, 0, 0, 0, 0]
        else:
            weights = [0.1, 0.2, 0.2, 0.17, 0.2, 0.1, 0.03, 0]
        name = names[rng.choice(len(names), p=weights)]
    if male:
        receding = 0.4 * max(0.0, age - 0.3)
        weights = np.array([0.08 + receding / 2, 0.13, 0.3, 0.22, 0.06 + 0.2 * ethnicity[0], 0.12, 0.01, 0.04])
    else:
        weights = np.array([0.005, 0.015, 0.1, 0.03, 0.07 + 0.25 * ethnicity[0], 0.1, 0.3, 0.42])
    style = STYLES[rng.choice(len(STYLES), p=weights / weights.sum())]
    top, side, front, curl = _SIZES[style]
    size = rng.uniform(0.75, 1.3)
    fringed = style in ("cap", "bob", "long", "short") and rng.random() < 0.4
    return Hair(
        style=style,
        name=name,
        colour=linear(np.clip(np.array(HAIR_COLOURS[name]) / 255 * rng.uniform(0.88, 1.12), 0, 1)),
        cover={"bald": 0.0, "buzzed": 0.75}.get(style, 1.0),
        line=rng.normal(0, 0.004) + (rng.uniform(0, 0.03) * max(0.0, age - 0.2) if male else 0),
        fringe=rng.uniform(0.008, 0.024) if fringed else 0.0,
        parting=rng.uniform(-0.025, 0.025),
        top=top * size,
        side=side * size,
        front=front * size,
        curl=curl,
        long=float(style in _LONG),
        cut=rng.uniform(-0.15, -0.085) if style == "bob" else rng.uniform(-0.26, -0.19),
        spread=rng.uniform(0.0, 0.012),
        phase=rng.uniform(0, 6.28),
    )
