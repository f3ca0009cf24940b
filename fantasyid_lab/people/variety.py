"""Photos that vary more than captions say: fuller, flatter and fringed hair, busy walls, lamps from anywhere.

Identity encoders learn from them; what people look like in all other photos and clips stays as it was drawn.
"""

from dataclasses import replace

import numpy as np

from .clip import Clip
from .colours import COLOURS, shade_of
from .hair import Hair
from .scene import Background, Light

DISCS = 12  # before every wall: photos that are drawn together need the same number


def varied(photo: Clip, amount: float) -> Clip:
    """The photo with hair, wall and lamp drawn anew, each with a probability of `amount`, by its own seeds. Style and
    colour of the hair stay what the caption says; the wall may not.
    """
    if not amount:
        return photo
    rng = np.random.default_rng([photo.person.seed, photo.seed, 5])
    hair, wall, lamp = rng.random(3) < amount
    scene = photo.scene
    scene = replace(
        scene,
        hair=_hair(rng, scene.hair) if hair else scene.hair,
        background=_wall(rng, scene.background, busy=bool(wall)),
        light=_lamp(rng, scene.light) if lamp else scene.light,
    )
    return replace(photo, scene=scene)


def _hair(rng: np.random.Generator, hair: Hair) -> Hair:
    volume = np.exp(rng.normal(0, 0.35, 3))
    return replace(
        hair,
        colour=(hair.colour * np.exp(rng.normal(0, 0.18)) * np.exp(rng.normal(0, 0.05, 3))).clip(0, 1),
        line=hair.line + rng.normal(0, 0.006),
        fringe=max(hair.fringe, rng.uniform(0, 0.034)) if hair.cover == 1 else hair.fringe,
        parting=rng.uniform(-0.045, 0.045),
        top=hair.top * volume[0],
        side=hair.side * volume[1],
        front=hair.front * volume[2],
        curl=hair.curl * rng.uniform(0.5, 2.0),
        cut=hair.cut + rng.uniform(-0.02, 0.03),
        spread=rng.uniform(0, 0.028),
    )


def _wall(rng: np.random.Generator, wall: Background, busy: bool) -> Background:
    """A wall behind `DISCS` discs, which are what was there before, or a crowd of things in any colours."""
    shapes, tints = (np.resize(x, (DISCS, 3)) for x in (wall.shapes, wall.tints))  # the same discs over each other
    if not busy:
        shapes[len(wall.shapes) :, :2] = 9.0  # out of sight
        return replace(wall, shapes=shapes, tints=tints)
    names = list(COLOURS)
    shapes = np.column_stack([rng.uniform(-0.6, 0.6, (DISCS, 2)), rng.uniform(0.03, 0.35, DISCS)]).astype(np.float32)
    tints = np.array([shade_of(names[rng.integers(len(names))], rng) for _ in range(DISCS)], np.float32)
    return replace(wall, shapes=shapes, tints=tints, strength=rng.uniform(0.5, 1.0), softness=rng.uniform(0.01, 1.0))


def _lamp(rng: np.random.Generator, light: Light) -> Light:
    side, height = rng.uniform(-1.7, 1.7), rng.uniform(-0.3, 1.3)
    direction = np.array([np.sin(side), height, np.cos(side)])
    lamp, sky = rng.uniform(0.65, 1.2, 2)  # skin stays what it is
    return replace(
        light,
        direction=(direction / np.linalg.norm(direction)).astype(np.float32),
        lamp=(light.lamp * lamp).astype(np.float32),
        sky=(light.sky * sky).astype(np.float32),
    )
