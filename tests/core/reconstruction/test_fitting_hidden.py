"""Hands before the face and heads in profile: what is not seen is said to be, and the performance holds meanwhile."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fantasyid_core.detection.face_track import FaceTrack, follow
from fantasyid_core.detection.faces import detect
from fantasyid_core.images import resize
from fantasyid_core.reconstruction.performance import capture
from fantasyid_lab.people.clip import clip
from fantasyid_lab.people.person import TEST, person
from fantasyid_lab.people.render import render
from tools.measure.reconstruction import face_model

YAW = [0, 30, 60, 90, 105, 90, 60, 30, 0]  # degrees
EYES = (468, 473)


@pytest.fixture(scope="module")
def head(astronaut: Tensor) -> Tensor:
    """(160, 160, 3) around the astronaut's face, at half size."""
    return resize(astronaut[0, :320, 80:400], 160, 160)


def with_hand(photo: Tensor, x: float, y: float, size: float) -> Tensor:
    """The photo with an open hand before it, its palm of that width about (x, y)."""
    picture = Image.fromarray((255 * photo).round().byte().numpy())
    pen, skin, edge = ImageDraw.Draw(picture), (205, 150, 125), (150, 100, 80)
    for finger in (-1.5, -0.5, 0.5, 1.5):
        ends = [(x + 0.27 * finger * size, y), (x + 0.33 * finger * size, y - 1.15 * size)]
        pen.line(ends, edge, int(0.27 * size))
        pen.line(ends, skin, int(0.22 * size))
    pen.line([(x - 0.3 * size, y + 0.3 * size), (x - 0.95 * size, y - 0.35 * size)], skin, int(0.26 * size))
    pen.ellipse([x - 0.58 * size, y - 0.45 * size, x + 0.58 * size, y + 0.75 * size], skin, edge)
    pen.rectangle([x - 0.35 * size, y + 0.5 * size, x + 0.35 * size, y + 3 * size], skin)
    return torch.from_numpy(np.array(picture)).float() / 255


def passing_hand(head: Tensor, below: float) -> tuple[FaceTrack, float]:
    """A hand in the middle two of six frames, so many widths of the face below its middle; and that width in px."""
    x0, y0, x1, y1 = detect(head)[0].box.tolist()
    width = x1 - x0
    covered = with_hand(head, (x0 + x1) / 2, (y0 + y1) / 2 + below * width, 0.8 * width)
    return follow(torch.stack([head, head, covered, covered, head, head]), 25.0), width


def test_a_hand_before_the_face_hides_it_and_the_performance_holds(head):
    track, _ = passing_hand(head, below=0.3)
    assert track.present.tolist() == [True, True, False, False, True, True]
    assert not track.confidence[2:4].any()
    assert track.report == "The face is in 4 of 6 frames (67%). It is missing in frames 2 to 3."
    captured = capture(face_model(), track)
    for values in (captured.pose, captured.expression):
        torch.testing.assert_close(values[2], (2 * values[1] + values[4]) / 3, atol=1e-3, rtol=0)
    assert captured.confidence.bool().tolist() == track.present.tolist()


def test_a_hand_before_the_chin_leaves_the_eyes_where_they_are(head):
    track, width = passing_hand(head, below=0.8)
    assert track.present.all()
    moved = (track.points[:, EYES, :2] - track.points[0, EYES, :2]).norm(dim=-1)
    assert moved.max() < 0.06 * width


def test_a_head_in_profile_is_lost_and_found_and_meanwhile_held_on_its_side():
    still = clip(person(TEST[0]), 0, len(YAW))
    pose = np.zeros((len(YAW), 3), np.float32)
    pose[:, 0] = YAW
    turning = replace(still, pose=pose, expression=0 * still.expression, camera=still.camera[:1].repeat(len(YAW), 0))
    track = follow(render([turning], size=160).frames[0], 10.0)
    assert track.present[[0, 1, 7, 8]].all()
    assert not track.present[4]
    captured = capture(face_model(), track)
    yaw = captured.pose[:, 0]
    assert (yaw[[0, 8]].abs() < 10).all()
    assert (yaw[3:6] > 25).all()
    assert captured.expression.abs().max() < 0.5, "a turned face makes no grimaces"
