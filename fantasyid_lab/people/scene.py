"""What surrounds a person in one clip: shirt, background, light. Drawn afresh for every clip, so that only the face
tells who it is.
"""

from dataclasses import dataclass

import numpy as np

from .colours import COLOURS, linear, shade_of
from .hair import Hair

BACKGROUNDS = ("plain", "gradient", "two-tone", "blurred")
SHAPES = 4


@dataclass(frozen=True, eq=False)
class Light:
    """A sky and a lamp. direction: (3,) unit, towards the lamp, in the picture's axes; lamp, sky: colours (3,)."""

    direction: np.ndarray
    lamp: np.ndarray
    sky: np.ndarray


@dataclass(frozen=True, eq=False)
class Background:
    """A wall: colour `near` turns into `far` across the picture, with blurred discs before it.

    Attributes:
        near, far: (3,) linear colours. direction: (2,) unit, from near to far in the picture. middle: where the two
            meet, 0…1 of the picture's side from its centre; softness: width of the transition, likewise.
        shapes: (4, 3) x, y, radius in sides of the picture from its centre; tints: (4, 3) colours;
            strength: 0…1 of the discs.
        vignette: 0…1.
    """

    near: np.ndarray
    far: np.ndarray
    direction: np.ndarray
    middle: float
    softness: float
    shapes: np.ndarray
    tints: np.ndarray
    strength: float
    vignette: float


@dataclass(frozen=True, eq=False)
class Scene:
    """Attributes: names of the shirt's and background's colours in `COLOURS`; the kind of background; shirt (3,)
    linear; collar: m, how high the shirt reaches; the parts.
    """

    shirt_name: str
    background_name: str
    kind: str
    shirt: np.ndarray
    collar: float
    background: Background
    light: Light
    hair: Hair


def draw_scene(rng: np.random.Generator, hair: Hair) -> Scene:
    """A random scene with this hair."""
    names = list(COLOURS)
    shirt, background = names[rng.integers(len(names))], names[rng.integers(len(names))]
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Scene(
        shirt_name=shirt,
        background_name=background,
        kind=kind,
        shirt=shade_of(shirt, rng),
        collar=rng.uniform(-0.012, 0.012),
        background=_draw_background(rng, background, kind),
        light=_draw_light(rng),
        hair=hair,
    )


def _draw_background(rng: np.random.Generator, name: str, kind: str) -> Background:
    near = shade_of(name, rng)
    far, middle, softness, strength = near, 0.0, 1.0, 0.0
    if kind == "gradient":
        far = near * rng.uniform(0.55, 0.85)
    elif kind == "two-tone":  # the second colour takes less than a third
        other = [n for n in COLOURS if n != name][rng.integers(len(COLOURS) - 1)]
        far, middle, softness = shade_of(other, rng), rng.uniform(0.25, 0.36), rng.uniform(0.004, 0.05)
    elif kind == "blurred":
        strength = rng.uniform(0.35, 0.8)
    turn = rng.uniform(0, 2 * np.pi)
    tints = near * rng.uniform(0.5, 1.5, (SHAPES, 1)) + rng.normal(0, 0.03, (SHAPES, 3))
    return Background(
        near=near,
        far=far.astype(np.float32),
        direction=np.array([np.cos(turn), np.sin(turn)], np.float32),
        middle=middle,
        softness=softness,
        shapes=np.column_stack([rng.uniform(-0.6, 0.6, (SHAPES, 2)), rng.uniform(0.08, 0.3, SHAPES)]).astype(
            np.float32
        ),
        tints=np.clip(tints, 0, 1).astype(np.float32),
        strength=strength,
        vignette=rng.uniform(0, 0.3),
    )


def _draw_light(rng: np.random.Generator) -> Light:
    side, height = rng.uniform(-1.0, 1.0), rng.uniform(0.1, 0.9)
    direction = np.array([np.sin(side), height, np.cos(side)])
    warmth = rng.uniform(-1, 1)
    tint = np.array([1 + 0.07 * warmth, 1.0, 1 - 0.1 * warmth])
    share = rng.uniform(0.35, 0.62)  # of the sky
    total = rng.uniform(0.86, 1.06)
    return Light(
        direction=(direction / np.linalg.norm(direction)).astype(np.float32),
        lamp=(total * (1 - share) * 1.45 * tint).astype(np.float32),
        sky=(total * share * (2 - tint) * linear(np.ones(3))).astype(np.float32),
    )
