"""Head pose of faces against the truth on rendered people and by eye on photos, and the scores that rank views."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from fantasyid_core.detection.dense_pose import pose_from_dense
from fantasyid_core.detection.faces import DetectedFace, detect, detect_batch
from fantasyid_core.detection.head_pose import FRONTAL, HeadPose, estimate, pose_from_landmarks, rotation
from fantasyid_core.detection.quality import occlusion, sharpness
from fantasyid_lab.people.clip import still
from fantasyid_lab.people.person import TEST, person
from fantasyid_lab.people.render import render

LIMITS = 60.0, 25.0, 25.0  # degrees of yaw, pitch and roll


def test_signs():
    """Right, up, clockwise, as they look in the picture; y up, z towards the viewer."""
    nose, top = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0])

    def turned(point: torch.Tensor, **angles: float) -> list[float]:
        angle = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0} | angles
        return (rotation(*map(torch.tensor, angle.values())) @ point).tolist()

    assert turned(nose, yaw=20.0)[0] > 0.3
    assert turned(nose, pitch=20.0)[1] > 0.3
    assert turned(top, roll=20.0)[0] > 0.3


@pytest.fixture(scope="module")
def people() -> tuple[list[list[DetectedFace]], torch.Tensor]:
    """Faces found in photos of 24 rendered people that no part was fitted on, and the true poses (24, 3)."""
    draw = np.random.default_rng(5)
    clips = [
        replace(still(person(seed), seed), pose=(draw.uniform(-1, 1, (1, 3)) * LIMITS).astype(np.float32))
        for seed in TEST[1000:1024]
    ]
    drawn = render(clips, 192)
    return detect_batch(drawn.frames[:, 0]), drawn.pose[:, 0]


def test_pose_of_rendered_people(people: tuple[list[list[DetectedFace]], torch.Tensor]):
    """All 200 of docs/detection.md: `python -m benchmarks.detection --people 200`."""
    networks = medians(people, lambda face: face.pose)
    assert (networks <= torch.tensor([4.0, 5.0, 5.0])).all()


def test_dense_landmarks_tell_more_of_it(people: tuple[list[list[DetectedFace]], torch.Tensor]):
    """With the crop's network in pitch; and by themselves."""
    assert (medians(people, lambda face: ensure_dense_landmarks(face).pose) <= torch.tensor([2.5, 3.0, 1.5])).all()
    alone = medians(people, lambda face: HeadPose(*pose_from_dense(ensure_dense_landmarks(face).dense_landmarks)))
    assert (alone <= torch.tensor([2.5, 4.5, 1.5])).all()


def medians(
    people: tuple[list[list[DetectedFace]], torch.Tensor], pose_of: Callable[[DetectedFace], HeadPose]
) -> torch.Tensor:
    """Median errors of yaw, pitch and roll in degrees."""
    faces, true = people
    found = [i for i, own in enumerate(faces) if own]
    assert len(found) >= 22
    poses = [pose_of(faces[i][0]) for i in found]
    return (torch.tensor([(p.yaw, p.pitch, p.roll) for p in poses]) - true[found]).abs().median(0).values


def test_mirrored_and_turned_faces_have_mirrored_and_turned_poses(
    people: tuple[list[list[DetectedFace]], torch.Tensor],
):
    (face, *_), *_ = (own for own in people[0] if own)
    width = face.image.shape[1]
    mirrored = (face.landmarks * torch.tensor([-1.0, 1]) + torch.tensor([width - 1.0, 0]))[[1, 0, 2, 4, 3]]
    reflection = face.to_crop * torch.tensor([[1.0, -1, -1], [-1, 1, 1]])
    pose = estimate(face.landmarks[None], face.crop[None], face.to_crop[None])[0]
    other = estimate(mirrored[None], face.crop[None].flip(2), reflection[None])[0]
    assert (other.yaw, other.pitch, other.roll) == pytest.approx((-pose.yaw, pose.pitch, -pose.roll), abs=0.1)
    upside_down = pose_from_landmarks(-face.landmarks)
    upright = pose_from_landmarks(face.landmarks)
    assert upside_down.yaw == pytest.approx(upright.yaw, abs=0.1)
    assert abs(upside_down.roll - upright.roll) == pytest.approx(180, abs=0.1)


@pytest.mark.parametrize("points", [torch.zeros(478, 3), torch.full((478, 3), torch.nan)])
def test_dense_landmarks_that_say_nothing_are_frontal(points: torch.Tensor):
    assert pose_from_dense(points).tolist() == [0, 0, 0]


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
