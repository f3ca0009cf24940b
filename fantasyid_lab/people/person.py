"""Who a synthetic person is: everything that stays the same from clip to clip, drawn from one seed."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .colours import linear
from .hair import Hair, draw_hair
from .head import load

TRAIN = range(0, 1_000_000)
VALIDATION = range(1_000_000, 1_100_000)
TEST = range(2_000_000, 2_100_000)
"""Seeds of the people of each split."""
SEXES = ("female", "male")
MAX_CODE = 3.0  # standard deviations

_SKIN = linear(
    np.array(
        [
            (252, 226, 208),
            (244, 206, 180),
            (228, 182, 148),
            (204, 150, 112),
            (164, 108, 74),
            (118, 76, 52),
            (84, 54, 40),
        ]
    )
    / 255
)
_IRIS = linear(
    np.array([(58, 36, 22), (92, 58, 30), (112, 98, 50), (66, 112, 76), (74, 120, 168), (132, 150, 160)]) / 255
)
_LIPSTICK = linear(np.array([(172, 34, 52), (190, 72, 84), (142, 32, 62), (200, 92, 92)]) / 255)


@dataclass(frozen=True, eq=False)
class Paint:
    """What a face is painted with; colours (3,) float32 linear 0…1, lengths in metres on the base mesh.

    Attributes:
        skin, lips, iris, brow: colours.
        blush, freckles, socket: 0…1, of cheeks and nose, of specks there, of the dark about the eyes.
        brow_height, brow_thickness, brow_arch, brow_tail: shape of the brows; brow_density: 0…1.
        beard, moustache: 0…1; stubble: 0 full … 1 dots.
        phase: where specks and strands lie.
    """

    skin: np.ndarray
    lips: np.ndarray
    iris: np.ndarray
    brow: np.ndarray
    blush: float
    freckles: float
    socket: float
    brow_height: float
    brow_thickness: float
    brow_arch: float
    brow_tail: float
    brow_density: float
    beard: float
    moustache: float
    stubble: float
    phase: float

    @property
    def vector(self) -> np.ndarray:
        """(P,) every field, one after the other."""
        return np.concatenate([np.atleast_1d(value) for value in vars(self).values()])

    def from_vector(self, vector: np.ndarray) -> "Paint":
        """Paint of another `vector` (P,)."""
        sizes = [np.size(value) for value in vars(self).values()]
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        values = (part if size > 1 else float(part[0]) for part, size in zip(parts, sizes, strict=True))
        return Paint(*values)


@dataclass(frozen=True, eq=False)
class Person:
    """A synthetic identity.

    Attributes:
        seed: what it was drawn from.
        sex: one of `SEXES`; age: years; ethnicity: shares of African, Asian and European features, (3,).
        weight, muscle: 0…1.
        shape_code: (100,) float32, standard deviations, see `Head`.
        paint: of the face; hair: as usually worn.
    """

    seed: int
    sex: str
    age: float
    ethnicity: tuple[float, float, float]
    weight: float
    muscle: float
    shape_code: Tensor
    paint: Paint
    hair: Hair


def person(seed: int) -> Person:
    """The person of a seed; the same on every machine."""
    rng = np.random.default_rng([seed, 1])
    male = rng.random() < 0.5
    age = rng.beta(1.1, 1.5)
    ethnicity = rng.dirichlet([0.35] * 3)
    weight, muscle = rng.uniform(size=2)
    known = {
        "1": 1.0,
        "sex": float(np.clip((0.95 if male else 0.05) + rng.normal(0, 0.05), 0, 1)),
        "age": age,
        "weight": weight,
        "muscle": muscle,
        "african": ethnicity[0],
        "asian": ethnicity[1],
    }
    prior, factor, features = _prior()
    products = np.array([np.prod([known[name] for name in feature.split("*")]) for feature in features])
    code = np.clip(prior @ products + factor @ rng.normal(size=len(factor)), -MAX_CODE, MAX_CODE)
    hair = draw_hair(rng, male, age, ethnicity)
    return Person(
        seed=seed,
        sex=SEXES[male],
        age=20 + 55 * age,
        ethnicity=tuple(ethnicity.tolist()),
        weight=weight,
        muscle=muscle,
        shape_code=torch.from_numpy(code.astype(np.float32)),
        paint=_draw_paint(rng, male, age, ethnicity, hair),
        hair=hair,
    )


@lru_cache(maxsize=1)
def _prior() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    head = load()
    return head.prior.double().numpy(), head.prior_factor.double().numpy(), head.features


def _draw_paint(rng: np.random.Generator, male: bool, age: float, ethnicity: np.ndarray, hair: Hair) -> Paint:
    tone = np.clip(ethnicity @ [4.9, 2.0, 0.8] + rng.normal(0, 0.65), 0, 5.99)
    i = int(tone)
    skin = (_SKIN[i] * (1 - tone + i) + _SKIN[i + 1] * (tone - i)) * (1 + rng.normal(0, 0.03, 3))
    dark = ethnicity[0] + ethnicity[1] > 0.6
    iris = _IRIS[rng.choice(6, p=[0.8, 0.2, 0, 0, 0, 0] if dark else [0.16, 0.18, 0.16, 0.14, 0.24, 0.12])]
    redness = rng.uniform(0.55, 0.95)
    lips = skin * np.array([1.04, 0.54, 0.53]) * redness + 0.004
    if not male and rng.random() < 0.45:
        lips = 0.45 * lips + 0.55 * _LIPSTICK[rng.integers(4)]
    brow = np.minimum(hair.colour, 0.25) * rng.uniform(0.25, 0.6) + 0.002
    full = rng.choice(3, p=[0.5, 0.25, 0.25]) if male else 0
    return Paint(
        skin=skin.astype(np.float32),
        lips=lips.astype(np.float32),
        iris=(iris * rng.uniform(0.8, 1.2)).astype(np.float32),
        brow=brow.astype(np.float32),
        blush=rng.uniform(0.15, 0.6),
        freckles=float(rng.random() < 0.2 and tone < 3) * rng.uniform(0.3, 0.8),
        socket=rng.uniform(0.1, 0.35) + 0.2 * age,
        brow_height=rng.normal(0, 0.0013),
        brow_thickness=rng.uniform(0.0026, 0.0050) * (1.1 if male else 0.85),
        brow_arch=rng.uniform(-0.0005, 0.0035),
        brow_tail=rng.uniform(0.004, 0.010),
        brow_density=rng.uniform(0.86, 1.0),
        beard=(0, rng.uniform(0.25, 0.5), rng.uniform(0.88, 0.98))[full],
        moustache=float(full == 2 or (male and rng.random() < 0.2)) * rng.uniform(0.85, 0.98),
        stubble=float(full == 1),
        phase=rng.uniform(0, 6.28),
    )
