"""The One Euro filter: what is still is held still, what moves is followed at once."""

import math

import torch
from torch import Tensor


class OneEuroFilter:
    """Casiez, Roussel, Vogel, "1 € Filter", CHI 2012; one value after the other, any shape.

    Its cutoff frequency is `min_cutoff` at rest and grows by `beta` times the speed, so that noise is taken from what
    rests and lag from what moves. The defaults are those of MediaPipe's face landmarks, where speeds are in face sizes
    per second.
    """

    def __init__(self, rate: float, *, min_cutoff: float = 0.05, beta: float = 80.0, derivative_cutoff: float = 1.0):
        """Args: rate: values per second; the cutoffs in Hz."""
        self.rate, self.min_cutoff, self.beta, self.derivative_cutoff = rate, min_cutoff, beta, derivative_cutoff
        self._value: Tensor | None = None
        self._speed: Tensor | None = None

    def reset(self) -> None:
        """Forget what came before; the next value is taken as it is."""
        self._value = self._speed = None

    def __call__(self, value: Tensor, scale: float = 1.0) -> Tensor:
        """The next value, smoothed.

        Args:
            scale: the unit in which the speed counts, for points the size of the face in px.
        """
        if self._value is None or self._speed is None:
            self._value, self._speed = value, torch.zeros_like(value)
            return value
        speed = (value - self._value) * (self.rate / scale)
        steady = self._weight(torch.full_like(speed, self.derivative_cutoff))
        speed = self._speed + steady * (speed - self._speed)
        weight = self._weight(self.min_cutoff + self.beta * speed.abs())
        self._value, self._speed = self._value + weight * (value - self._value), speed
        return self._value

    def _weight(self, cutoff: Tensor) -> Tensor:
        """Of the new value, where the filter lets frequencies below `cutoff` Hz pass."""
        return 1 / (1 + self.rate / (2 * math.pi * cutoff))
