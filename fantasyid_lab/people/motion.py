"""How a head moves in a clip: turns, nods, smiles, talking, blinks as smooth curves over the frames."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .head import load

FPS = 8
"""Frames per second that motion is timed for."""


@dataclass(frozen=True, eq=False)
class ClipLabels:
    """What happens in a clip and what is seen; directions as in the picture.

    Attributes:
        turn: "left", "right" or None; tilt, gaze: likewise, gaze also "up" and "down".
        smile, talk, blink, nod, brows: whether it happens.
        shirt, background: names of `colours.COLOURS`.
    """

    turn: str | None
    tilt: str | None
    gaze: str | None
    smile: bool
    talk: bool
    blink: bool
    nod: bool
    brows: bool
    shirt: str
    background: str


@dataclass(frozen=True, eq=False)
class Motion:
    """pose: (T, 3) float32 degrees of yaw, pitch, roll; expression: (T, 50) float32 0…1."""

    pose: np.ndarray
    expression: np.ndarray


def draw_labels(rng: np.random.Generator, shirt: str, background: str) -> ClipLabels:
    """What shall happen in a clip."""
    chance = rng.random(8)
    sides = rng.integers(2, size=2)
    return ClipLabels(
        turn=("left", "right")[sides[0]] if chance[0] < 0.5 else None,
        tilt=("left", "right")[sides[1]] if chance[1] < 0.18 else None,
        gaze=("left", "right", "up", "down")[rng.integers(4)] if chance[2] < 0.2 else None,
        smile=bool(chance[3] < 0.4),
        talk=bool(chance[4] < 0.35),
        blink=bool(chance[5] < 0.45),
        nod=bool(chance[6] < 0.15),
        brows=bool(chance[7] < 0.2),
        shirt=shirt,
        background=background,
    )


def draw_motion(rng: np.random.Generator, labels: ClipLabels, frames: int) -> Motion:
    """A motion that shows what the labels say, and nothing else clearly."""
    time = np.arange(frames) / FPS
    length = max(frames, 2) / FPS
    pose = _draw_pose(rng, labels, time, length)
    face = _ExpressionCurves(frames)
    _draw_expression(rng, labels, face, time, length)
    return Motion(pose, np.clip(face.strengths, 0, 1).astype(np.float32))


def _draw_pose(rng: np.random.Generator, labels: ClipLabels, time: np.ndarray, length: float) -> np.ndarray:
    """(T, 3) degrees: a slow sway, and turn, nod and tilt as labelled."""
    yaw, pitch, roll = (rng.normal(0, s) + _sway(rng, time, a) for s, a in ((4, 1.6), (3, 1.2), (2, 0.8)))
    if labels.turn:
        sign = 1 if labels.turn == "right" else -1
        start, end = rng.uniform(-14, 4) * sign, rng.uniform(27, 44) * sign
        rise = _step(time, rng.uniform(0.05, 0.3) * length, rng.uniform(0.3, 0.5) * length)
        if rng.random() < 0.3:  # part of the way back
            rise = rise - rng.uniform(0.2, 0.45) * _step(time, 0.72 * length, 0.26 * length)
        yaw = yaw * 0.4 + start + (end - start) * rise
    else:
        yaw = yaw + rng.choice([0.0, rng.uniform(-22, 22)])
    if labels.nod:
        start, frequency = rng.uniform(0.05, 0.35) * length, rng.uniform(1.0, 1.5)
        count = rng.integers(2, 4)
        phase = np.clip((time - start) * frequency, 0, count)
        pitch = pitch + rng.uniform(8, 13) * (np.cos(2 * np.pi * phase) - 1) / 1.4
    if labels.tilt:
        sign = 1 if labels.tilt == "right" else -1
        roll = roll * 0.5 + sign * rng.uniform(13, 22) * _bump(rng, time, length)
    return np.stack([yaw, pitch, roll], 1).astype(np.float32)


def _draw_expression(
    rng: np.random.Generator, labels: ClipLabels, face: "_ExpressionCurves", time: np.ndarray, length: float
) -> None:
    """Add the labelled actions to `face`."""
    if labels.smile:
        strength = rng.uniform(0.75, 1.0) * _step(time, rng.uniform(0.0, 0.3) * length, rng.uniform(0.2, 0.4) * length)
        face.both("mouthSmile", strength)
        face.both("cheekSquint", 0.6 * strength)
        face.both("eyeSquint", 0.25 * strength)
        face.both("mouthUpperUp", rng.uniform(0, 0.4) * strength)
        face.add("jawOpen", rng.uniform(0, 0.12) * strength)
    else:
        face.both("mouthSmile", np.full(len(time), rng.uniform(0.08, 0.25)))
    if labels.talk:
        _talk(rng, face, time, length)
    if labels.blink:
        for _ in range(rng.integers(1, 3)):
            indices = rng.integers(0, max(1, len(time) - 2)) + np.arange(3)
            shut = np.zeros(len(time))
            shut[indices[indices < len(time)]] = np.array([0.7, 1.0, rng.choice([0.0, 0.5])])[
                : (indices < len(time)).sum()
            ]
            face.both("eyeBlink", shut)
    if labels.brows:
        strength = rng.uniform(0.75, 1) * _bump(rng, time, length)
        face.add("browInnerUp", strength)
        face.both("browOuterUp", strength)
        face.both("eyeWide", 0.35 * strength)
    if labels.gaze:
        face.turn_eyes(labels.gaze, rng.uniform(0.6, 0.95) * _bump(rng, time, length))
    else:
        face.turn_eyes("right" if rng.random() < 0.5 else "left", np.full(len(time), abs(rng.normal(0, 0.06))))


def _talk(rng: np.random.Generator, face: "_ExpressionCurves", time: np.ndarray, length: float) -> None:
    """Syllables: the jaw opens three or four times a second, the lips round or stretch with some of them."""
    frequency = rng.uniform(2.6, 3.4)
    start, end = rng.uniform(0, 0.2) * length, rng.uniform(0.75, 1.1) * length
    syllable = np.floor(time * frequency).astype(int)
    count = syllable.max() + 1
    speaking = _step(time, start, 0.15) * (1 - _step(time, end, 0.15))
    open_ = speaking * (0.25 + 0.75 * np.abs(np.sin(np.pi * time * frequency)))
    face.add("jawOpen", open_ * rng.uniform(0.2, 0.55, count)[syllable])
    face.add("mouthFunnel", open_ * (rng.uniform(0, 0.6, count) * (rng.random(count) < 0.4))[syllable])
    face.both("mouthStretch", open_ * (rng.uniform(0, 0.5, count) * (rng.random(count) < 0.4))[syllable])
    face.both("mouthLowerDown", open_ * rng.uniform(0.1, 0.5, count)[syllable])
    face.both("mouthUpperUp", open_ * rng.uniform(0, 0.25, count)[syllable])


class _ExpressionCurves:
    """Strengths (T, 50) of the actions, by name."""

    def __init__(self, frames: int):
        self.strengths = np.zeros((frames, len(_numbers())))

    def add(self, action: str, strength: np.ndarray) -> None:
        self.strengths[:, _numbers()[action]] += strength

    def both(self, action: str, strength: np.ndarray) -> None:
        for side in ("Left", "Right"):
            self.add(action + side, strength)

    def turn_eyes(self, direction: str, strength: np.ndarray) -> None:
        """Turn both eyes; left and right as in the picture."""
        left, right = {
            "up": ("eyeLookUpLeft", "eyeLookUpRight"),
            "down": ("eyeLookDownLeft", "eyeLookDownRight"),
            "right": ("eyeLookOutLeft", "eyeLookInRight"),
            "left": ("eyeLookInLeft", "eyeLookOutRight"),
        }[direction]
        self.add(left, strength)
        self.add(right, strength)


@lru_cache(maxsize=1)
def _numbers() -> dict[str, int]:
    return {name: i for i, name in enumerate(load().expressions)}


def _step(time: np.ndarray, start: float, duration: float) -> np.ndarray:
    """0 → 1, smooth at both ends."""
    t = np.clip((time - start) / max(duration, 1e-3), 0, 1)
    return t * t * (3 - 2 * t)


def _bump(rng: np.random.Generator, time: np.ndarray, length: float) -> np.ndarray:
    """0 → 1 and stays, or back to 0 at the end."""
    rise = _step(time, rng.uniform(0.05, 0.3) * length, rng.uniform(0.15, 0.3) * length)
    if rng.random() < 0.5:
        return rise
    return rise * (1 - _step(time, 0.72 * length, 0.22 * length))


def _sway(rng: np.random.Generator, time: np.ndarray, size: float) -> np.ndarray:
    """What nobody can keep from doing: slow small motion."""
    rates, phases = rng.uniform(0.15, 0.6, 2), rng.uniform(0, 2 * np.pi, 2)
    return size * rng.uniform(0.4, 1) * np.sin(2 * np.pi * rates[:, None] * time + phases[:, None]).mean(0)
