"""What is still is held still, what moves is followed."""

import math

import pytest
import torch

from fantasyid_core.detection.one_euro import OneEuroFilter

RATE = 25.0


def smoothed(values: torch.Tensor, scale: float = 1.0, **settings: float) -> torch.Tensor:
    filtered = OneEuroFilter(RATE, **settings)
    return torch.stack([filtered(value, scale) for value in values])


def test_one_step_is_an_exponential_mean_whose_weight_grows_with_the_speed():
    """By the paper's equations, for a step of 0.1 at 25 values a second."""

    def weight(cutoff: float) -> float:
        return 1 / (1 + RATE / (2 * math.pi * cutoff))

    speed = weight(1.0) * 0.1 * RATE
    found = smoothed(torch.tensor([[0.0], [0.1]]), min_cutoff=0.5, beta=2.0)
    assert float(found[1]) == pytest.approx(weight(0.5 + 2.0 * speed) * 0.1)


def test_noise_about_a_still_face_is_held_and_a_turn_is_followed():
    """In px of a face that is 200 px large: 0.1 px of noise, then 60 px in a second."""
    draw = torch.Generator().manual_seed(0)
    still = 100 + 0.1 * torch.randn(100, 40, 2, generator=draw)
    held = smoothed(still, 200.0)
    assert held[50:].diff(dim=0).std() < 0.3 * still[50:].diff(dim=0).std()
    path = 100 + 60 * torch.linspace(0, 1, 26)[:, None]
    assert (smoothed(path, 200.0) - path)[5:].abs().max() < 2


def test_after_a_reset_the_next_value_is_taken_as_it_is():
    filtered = OneEuroFilter(RATE)
    filtered(torch.zeros(2))
    filtered.reset()
    assert filtered(torch.ones(2)).tolist() == [1, 1]
