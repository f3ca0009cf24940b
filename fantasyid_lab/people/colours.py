"""Colours by name, for shirts and backgrounds: in captions, in pictures and for the attribute regressor."""

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 32, 36),
    "orange": (240, 130, 30),
    "yellow": (244, 212, 50),
    "green": (46, 140, 62),
    "blue": (38, 84, 190),
    "purple": (118, 56, 160),
    "pink": (244, 150, 185),
    "brown": (112, 68, 40),
    "white": (232, 232, 230),
    "grey": (128, 130, 132),
    "black": (28, 28, 32),
}
"""Name → sRGB 0…255 of its middle."""


def shade_of(name: str, rng: np.random.Generator, spread: float = 0.06) -> np.ndarray:
    """A random shade (3,) float32 linear 0…1 that still goes by this name."""
    colour = np.asarray(COLOURS[name]) / 255
    colour = colour * rng.uniform(1 - 1.5 * spread, 1 + spread) + rng.normal(0, spread / 3, 3)
    return linear(np.clip(colour, 0.02, 1))


def linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB 0…1 → linear light 0…1, float32 (exponent 2.2)."""
    return np.power(srgb, 2.2).astype(np.float32)
