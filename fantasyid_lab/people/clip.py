"""A clip of a person: how it moves, what surrounds it, from where it is seen, and the caption that says so."""

from dataclasses import dataclass

import numpy as np

from .caption import caption
from .hair import draw_hair
from .motion import ClipLabels, draw_labels, draw_motion
from .person import Person
from .scene import Scene, draw_scene

OTHER_HAIR = 0.35
"""Share of clips in which a person wears other hair than usual."""
MAX_STILL_YAW = 40.0
CLIP_ZOOM = 0.75
"""Height that a clip shows, by what a photo does: a face is then some 70 of 160 px wide, enough to be recognised."""


@dataclass(frozen=True, eq=False)
class Clip:
    """T frames of a person.

    Attributes:
        person: who; seed: what the rest was drawn from.
        pose: (T, 3) float32 degrees of yaw, pitch, roll as in `Head.vertices`.
        expression: (T, 50) float32 0…1.
        camera: (T, 5) float32: x, y in metres from the middle of the eyes that the picture's centre shows, height in
            metres that the picture spans there, distance in metres, roll in degrees.
        scene: shirt, background, light, hair.
        caption: what the clip shows; labels: the same as data.
    """

    person: Person
    seed: int
    pose: np.ndarray
    expression: np.ndarray
    camera: np.ndarray
    scene: Scene
    caption: str
    labels: ClipLabels

    @property
    def frames(self) -> int:
        """T."""
        return len(self.pose)


def clip(person: Person, seed: int, frames: int = 25) -> Clip:
    """A clip of a person, drawn from both seeds; the same on every machine."""
    rng = np.random.default_rng([person.seed, seed, 2])
    scene = _scene(rng, person)
    labels = draw_labels(rng, scene.shirt_name, scene.background_name)
    motion = draw_motion(rng, labels, frames)
    camera = _camera(rng, frames, CLIP_ZOOM)
    return Clip(
        person, seed, motion.pose, motion.expression, camera, scene, caption(rng, person, scene, labels), labels
    )


def still(person: Person, seed: int) -> Clip:
    """One frame, such as a reference photo: any pose within 40° of yaw, a quiet face or a slight smile."""
    rng = np.random.default_rng([person.seed, seed, 3])
    scene = _scene(rng, person)
    labels = ClipLabels(
        turn=None,
        tilt=None,
        gaze=None,
        smile=bool(rng.random() < 0.3),
        talk=bool(rng.random() < 0.15),
        blink=False,
        nod=False,
        brows=False,
        shirt=scene.shirt_name,
        background=scene.background_name,
    )
    moment = draw_motion(rng, labels, 9)
    yaw = np.clip(rng.normal(0, 18), -MAX_STILL_YAW, MAX_STILL_YAW)
    pose = np.array([[yaw, rng.normal(0, 6), rng.normal(0, 4)]], np.float32)
    return Clip(
        person,
        seed,
        pose,
        moment.expression[-1:],
        _camera(rng, 1),
        scene,
        caption(rng, person, scene, labels),
        labels,
    )


def _scene(rng: np.random.Generator, person: Person) -> Scene:
    hair = person.hair
    if rng.random() < OTHER_HAIR:
        name = hair.name if rng.random() < 0.6 else None
        hair = draw_hair(rng, person.sex == "male", (person.age - 20) / 55, np.array(person.ethnicity), name)
    return draw_scene(rng, hair)


def _camera(rng: np.random.Generator, frames: int, height: float = 1.0) -> np.ndarray:
    """Head and shoulders, `height` times as much of them; drifts a little and slowly, or hardly."""
    size = rng.uniform(0.2, 1.0)
    time = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    start = np.array([rng.normal(0, 0.010), rng.normal(-0.035, 0.010), rng.uniform(0.36, 0.46), 0, rng.normal(0, 1.5)])
    drift = np.array([rng.normal(0, 0.012), rng.normal(0, 0.008), rng.normal(0, 0.025), 0, rng.normal(0, 1.0)]) * size
    wobble = np.sin(2 * np.pi * (time[:, None] * rng.uniform(0.5, 1.5, 5) + rng.uniform(0, 1, 5)))
    camera = (
        start + drift * (time * time * (3 - 2 * time))[:, None] + wobble * np.array([2e-3, 2e-3, 2e-3, 0, 0.3]) * size
    )
    camera[:, 1] += 0.034 * (1 - height)  # the nearer, the higher: what is left out is shoulders
    camera[:, 2] *= height
    camera[:, 3] = rng.uniform(0.7, 1.6)
    return camera.astype(np.float32)
