"""Drift: a likeness by second, its worst second and its trend."""

import pytest
import torch

from fantasyid_core.meters.drift import measure_drift

NAN = float("nan")


def test_seconds_are_means_of_the_frames_that_count():
    found = measure_drift(torch.tensor([0.2, 0.4, 0.5, NAN, NAN, NAN, 0.3]), fps=2, falls=True)
    assert found.by_second[:2] == pytest.approx((0.3, 0.5))
    assert found.by_second[2] != found.by_second[2]
    assert found.by_second[3] == pytest.approx(0.3)
    assert found.face_share == pytest.approx(4 / 7)


@pytest.mark.parametrize(("falls", "worst"), [(True, 2), (False, 0)])
def test_the_worst_second_is_the_least_like_one(falls, worst):
    assert measure_drift(torch.tensor([0.1, 0.2, 0.9]), 1, falls).worst == worst


def test_the_trend_is_the_slope_per_second_whatever_frames_are_missing():
    line = 0.3 + 0.05 * torch.arange(20) / 8
    line[5:9] = NAN
    found = measure_drift(line, fps=8, falls=True)
    assert found.slope == pytest.approx(0.05, abs=1e-6)
    assert "towards somebody else" in str(found)
    assert "towards the person" in str(measure_drift(line, fps=8, falls=False))


def test_one_frame_has_no_trend():
    assert "trend +0.0000 a second, towards nothing" in str(measure_drift(torch.tensor([0.4]), 8, True))
