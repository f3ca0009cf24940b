"""478 points of a face: as MediaPipe reads them, wherever the face is and however large, and steady over a video."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fantasyid_core.detection import dense_landmarks, face_contours, landmark_network
from fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from fantasyid_core.detection.faces import detect
from fantasyid_core.detection.selection import find_face, numbered
from tools.measure.labelled_faces import photos

FIXTURE = Path(__file__).parents[2] / "fixtures" / "landmarks" / "mediapipe.safetensors"
RIGHT_IRIS, LEFT_IRIS, NOSE_TIP, MOUTH = 468, 473, 4, (61, 291)


def reference() -> tuple[list[str], Tensor, Tensor]:
    """Names of photos, squares (N, 2, 3) and points (N, 478, 3) as MediaPipe's own graph reads them there."""
    with safe_open(FIXTURE, "pt") as file:
        return json.loads(file.metadata()["photos"]), file.get_tensor("squares"), file.get_tensor("points")


def test_the_network_reads_what_mediapipe_reads():
    """Mean and worst distance in px of 192; `tools/measure/landmark_reference.py` made the fixture."""
    installed = {label.name: label.read() for label in photos() if label.people}
    names, squares, points = reference()
    here = [i for i, name in enumerate(names) if name in installed]
    if not here:
        pytest.skip("no package with the photos is installed")
    crops = torch.stack([dense_landmarks.cut(installed[names[i]], squares[i]) for i in here])
    found, confidence = landmark_network.load(torch.device("cpu"))((crops * 255).round() / 255)
    apart = (found - points[here]).norm(dim=-1)
    assert apart.mean() < 0.05
    assert apart.max() < 0.5
    assert confidence.min() > 0.9


def test_a_batch_is_read_as_its_faces_one_by_one():
    crops = torch.rand(3, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    network = landmark_network.load(torch.device("cpu"))
    together, alone = network(crops)[0], torch.cat([network(crop[None])[0] for crop in crops])
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)


def test_noise_is_no_face():
    crops = torch.rand(4, 3, 192, 192, generator=torch.Generator().manual_seed(1))
    assert landmark_network.load(torch.device("cpu"))(crops)[1].max() < 0.5


def test_points_lie_on_the_detector_s_eyes_nose_and_mouth(astronaut):
    face = detect(astronaut[0])[0]
    (dense,) = dense_landmarks.with_dense_landmarks([face])
    assert dense.dense_confidence > 0.99
    marked = dense.dense_landmarks[[RIGHT_IRIS, LEFT_IRIS, NOSE_TIP, *MOUTH], :2]
    assert (marked - face.landmarks).norm(dim=1).max() < 0.08 * float(face.box[2] - face.box[0])
    assert dense.dense_landmarks[NOSE_TIP, 2] == dense.dense_landmarks[:468, 2].min(), "the nose is nearest"


@pytest.mark.parametrize(("scale", "quarters"), [(3.0, 0), (0.7, 0), (1.0, 1), (1.0, 2)])
def test_points_follow_a_photo_that_is_enlarged_or_turned(astronaut, scale, quarters):
    """By the five landmarks turned with it; px of the photo as it was, in which the eyes are 43 px apart."""
    photo, face = astronaut[0], detect(astronaut[0])[0]
    points, _ = dense_landmarks.read(photo, face.landmarks[None])
    side = photo.shape[0]
    other = torch.nn.functional.interpolate(
        photo.movedim(-1, 0)[None], scale_factor=scale, mode="bilinear", antialias=True
    )[0].movedim(0, -1)
    other = torch.rot90(other, quarters, (0, 1))

    def moved(places: Tensor) -> Tensor:
        x, y = places.unbind(-1)
        for _ in range(quarters):  # counter-clockwise
            x, y = y, side - 1 - x
        return (torch.stack([x, y], -1) + 0.5) * scale - 0.5

    again, _ = dense_landmarks.read(other, moved(face.landmarks)[None])
    assert (again[0, :, :2] - moved(points[0, :, :2])).norm(dim=-1).mean() < 0.6 * scale


def test_two_faces_of_a_photo_are_read_together(astronaut):
    photo = torch.cat([astronaut[0], astronaut[0].flip(1)], 1)
    face = detect(astronaut[0])[0]
    mirrored = face.landmarks[[1, 0, 2, 4, 3]] * torch.tensor([-1, 1]) + torch.tensor([1023, 0])
    points, confidence = dense_landmarks.read(photo, torch.stack([face.landmarks, mirrored]))
    assert points.shape == (2, 478, 3)
    assert confidence.min() > 0.99
    assert (points[1, RIGHT_IRIS, 0] + points[0, LEFT_IRIS, 0] - 1023).abs() < 2


def test_a_photo_without_faces_has_no_points(astronaut):
    points, confidence = dense_landmarks.read(astronaut[0], torch.zeros(0, 5, 2))
    assert (points.shape, confidence.shape) == ((0, 478, 3), (0,))
    assert dense_landmarks.with_dense_landmarks([]) == []


def test_a_preview_shows_the_contours_in_place_of_five_points(astronaut):
    """Lines through the irises; a face that is not certainly there keeps the detector's points."""
    face = detect(astronaut[0])[0]
    dense = ensure_dense_landmarks(face)
    changed = (numbered([dense]) != numbered([face])).any(-1)
    assert 300 < int(changed.sum()) < 2000
    x, y = dense.dense_landmarks[RIGHT_IRIS + 1, :2].round().int().tolist()
    assert changed[y - 1 : y + 2, x - 1 : x + 2].any()
    assert torch.equal(numbered([replace(dense, dense_confidence=0.1)]), numbered([face]))


def test_the_face_that_is_found_carries_its_points_and_is_read_once(astronaut, monkeypatch):
    found = find_face(astronaut)
    assert found.face.dense_landmarks.shape == (478, 3)
    assert found.faces == [found.face]
    monkeypatch.setattr(dense_landmarks, "read", None)
    assert ensure_dense_landmarks(found.face) is found.face


def test_eyes_and_mouth_are_open_as_far_as_they_look(astronaut, six_faces):
    """By eye: the astronaut looks and smiles with her teeth; the woman at the left has her mouth closed."""
    face = ensure_dense_landmarks(detect(astronaut[0])[0])
    left = ensure_dense_landmarks(min(detect(six_faces[0]), key=lambda face: float(face.box[0])))
    assert face_contours.eye_opening(face.dense_landmarks).min() > 0.2
    smiling, closed = (float(face_contours.mouth_opening(each.dense_landmarks)) for each in (face, left))
    assert smiling > 0.1
    assert closed < 0.05
