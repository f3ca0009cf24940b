"""Sharpness of faces in turning frames: 1 for the truth, less the more it is blurred, and only where heads turn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fantasyid_core.meters.motion import turn_speed
from fantasyid_lab.evaluation import sharpness
from fantasyid_lab.people.clip import clip
from fantasyid_lab.people.person import TEST, person
from fantasyid_lab.people.render import RenderedClips, render


@pytest.fixture(scope="module")
def turning() -> RenderedClips:
    """Two people, looking straight, then turning by 5 degrees a frame."""
    yaw = np.array([0.0, 0.0, 0.0, 5.0, 10.0], np.float32)
    clips = [clip(person(TEST[i]), 2, len(yaw)) for i in range(2)]
    return render([replace(c, pose=np.stack([yaw, 0 * yaw, 0 * yaw], 1)) for c in clips], 160)


def blurred(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    offset = torch.arange(-6, 7)
    kernel = (-0.5 * (offset / sigma).square()).exp() / (-0.5 * (offset / sigma).square()).exp().sum()
    x = frames.flatten(0, 1).movedim(-1, 1).flatten(0, 1)[:, None]
    x = F.conv2d(F.conv2d(x, kernel[None, None, :, None], padding=(6, 0)), kernel[None, None, None], padding=(0, 6))
    return x.unflatten(0, (-1, 3))[:, :, 0].movedim(1, -1).unflatten(0, frames.shape[:2])


def measured(rendered: RenderedClips, frames: torch.Tensor) -> torch.Tensor:
    return sharpness.of_clips(frames, rendered.landmarks, rendered.pose)


def test_the_truth_is_1_and_blur_lowers_it_monotonically(turning: RenderedClips):
    true = measured(turning, turning.frames)
    ratios = [sharpness.ratio(measured(turning, blurred(turning.frames, s)), true) for s in (0.5, 0.8, 1.2, 2.0, 3.0)]
    assert sharpness.ratio(true, true) == 1
    assert all(a > b for a, b in zip([1.0, *ratios], ratios, strict=False)), ratios
    assert ratios[0] > 0.85
    assert ratios[-1] < 0.2


def test_frames_in_which_nothing_turns_do_not_count(turning: RenderedClips):
    true, frames = measured(turning, turning.frames), turning.frames.clone()
    frames[:, :2] = blurred(frames, 3.0)[:, :2]  # before the turn
    assert sharpness.ratio(measured(turning, frames), true) == 1
    still = torch.zeros_like(turning.pose[0])
    assert np.isnan(sharpness.turning_sharpness(frames[0], turning.landmarks[0], still))
    some = torch.tensor([float("nan"), 0.5])
    assert sharpness.ratio(some, torch.tensor([2.0, 1.0])) == 0.5, "over clips in which both turn"


def test_the_background_does_not_count(turning: RenderedClips):
    frames = turning.frames.clone()
    frames[:, :, :20] = torch.rand(2, 5, 20, 160, 3, generator=torch.Generator().manual_seed(0))
    true = measured(turning, turning.frames)
    assert sharpness.ratio(measured(turning, frames), true) == pytest.approx(1, abs=0.01)


def test_speed_of_a_turn_is_in_degrees_a_frame():
    pose = torch.zeros(1, 5, 3)
    pose[0, 3:, 0] = 8.0
    pose[..., 2] = torch.rand(5) * 90  # a head that leans is not blurred more
    assert turn_speed(pose).tolist() == [[0.0, 0.0, 8.0, 8.0, 0.0]]
