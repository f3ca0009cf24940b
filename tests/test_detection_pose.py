"""Head pose from five landmarks, and the scores that rank views."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasyid_core.detection import DetectedFace, detect
from fantasyid_core.head_pose import FRONTAL, MEAN_FACE, pose_from_landmarks, rotation
from fantasyid_core.quality import occlusion, sharpness


def seen(yaw: float, pitch: float, roll: float, scale: float = 1000, shift: float = 300) -> torch.Tensor:
    """The mean face's landmarks (5, 2) in px, turned."""
    turned = torch.tensor(MEAN_FACE) @ rotation(*map(torch.tensor, (float(yaw), float(pitch), float(roll)))).T
    return turned[:, :2] * torch.tensor([1, -1]) * scale + shift


def test_signs():
    """Right, up, clockwise, as they look in the picture."""
    frontal = seen(0, 0, 0)
    nose, chin = 2, slice(3, 5)
    assert seen(20, 0, 0)[nose, 0] > frontal[nose, 0]
    assert seen(0, 20, 0)[nose, 1] < frontal[nose, 1]
    assert seen(0, 0, 20)[chin, 0].mean() < frontal[chin, 0].mean()


@settings(deadline=None)
@given(
    yaw=st.floats(-70, 70),
    pitch=st.floats(-35, 35),
    roll=st.floats(-179, 179),
    scale=st.floats(100, 20_000),
    shift=st.floats(-5000, 5000),
)
def test_pose_is_recovered(yaw: float, pitch: float, roll: float, scale: float, shift: float):
    pose = pose_from_landmarks(seen(yaw, pitch, roll, scale, shift))
    assert pose.yaw == pytest.approx(yaw, abs=2)
    assert pose.pitch == pytest.approx(pitch, abs=2)
    assert pose.roll == pytest.approx(roll, abs=2)


@pytest.mark.parametrize("landmarks", [torch.zeros(5, 2), torch.full((5, 2), 7.0), torch.full((5, 2), torch.nan)])
def test_landmarks_that_say_nothing_are_frontal(landmarks: torch.Tensor):
    assert pose_from_landmarks(landmarks) == FRONTAL


def test_real_faces_look_where_they_look(six_faces: torch.Tensor):
    """By eye: the man who stands looks far to the left, the woman behind to the left, the other four ahead."""
    by_place = sorted(detect(six_faces), key=lambda face: float(face.box[0]))
    yaws = [face.pose.yaw for face in by_place]
    assert yaws[4] < -35
    assert -60 < yaws[1] < -20
    assert all(abs(yaws[i]) < 30 for i in (0, 2, 3, 5))
    assert by_place[0].pose.roll < -8
    assert by_place[2].pose.roll > 2


def test_mirrored_photo_turns_the_other_way(astronaut: torch.Tensor):
    """Within what YuNet's landmarks differ between a photo and its mirror image."""
    (pose,), (mirrored,) = ([face.pose for face in detect(photo)] for photo in (astronaut, astronaut.flip(2)))
    assert pose.yaw == pytest.approx(-mirrored.yaw, abs=5)
    assert pose.roll == pytest.approx(-mirrored.roll, abs=8)


def test_sharpness_is_the_blur_effect(astronaut: torch.Tensor):
    """The part that it looks at is the only thing of ours: on that, scikit-image's function says the same."""
    metrics = pytest.importorskip("skimage.measure")
    crop = detect(astronaut)[0].crop
    part = torch.nn.functional.interpolate(crop.movedim(-1, 0)[None], (256, 256), mode="bilinear", antialias=True)[0]
    part = part[:, 159 - 69 : 159 + 69, 128 - 51 : 128 + 51].movedim(0, -1).numpy()
    expected = (0.8 - metrics.blur_effect(part, channel_axis=-1)) / 0.3
    assert float(sharpness(crop[None])) == pytest.approx(expected, abs=0.03)


def test_sharpness_falls_with_blur_and_not_with_light(astronaut: torch.Tensor):
    crop = detect(astronaut)[0].crop.movedim(-1, 0)[None]
    scores = []
    for size in (512, 256, 128, 64, 32):
        reduced = torch.nn.functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)
        enlarged = torch.nn.functional.interpolate(reduced, (512, 512), mode="bilinear")
        scores.append(float(sharpness(enlarged.movedim(1, -1))))
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.6
    assert scores[-1] < 0.25
    darker = sharpness(crop.movedim(1, -1) * 0.3)
    assert float(darker) == pytest.approx(scores[0], abs=1e-3)


def test_blank_crop_has_scores():
    assert torch.isfinite(sharpness(torch.zeros(2, 512, 512, 3))).all()


def test_occlusion_is_what_the_edge_cuts_off(astronaut: torch.Tensor):
    (face,) = detect(astronaut)
    assert face.occlusion == 0
    x = int(face.landmarks[2, 0])
    half = detect(astronaut[:, :, x:])
    assert occlusion(face.to_crop, 512, x, 512) == pytest.approx(0.5, abs=0.1)
    assert all(other.occlusion > 0.2 for other in half)


def test_quality_ranks_views(astronaut: torch.Tensor, six_faces: torch.Tensor):
    (face,) = detect(astronaut)
    blurred = torch.nn.functional.avg_pool2d(astronaut.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    assert 0 < detect(blurred)[0].quality < face.quality < 1
    nothing = torch.zeros(4)
    assert DetectedFace(astronaut[0], nothing, face.landmarks, 1.0, face.crop, face.to_crop).quality == 0
