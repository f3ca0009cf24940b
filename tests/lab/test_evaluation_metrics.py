"""What the measures mean, on clips and people whose truth is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasyid_core.detection.head_pose import rotation
from fantasyid_core.meters import likeness, motion
from fantasyid_core.meters.motion import LandmarkTemplate, head_template
from fantasyid_lab.evaluation import measure
from fantasyid_lab.people.clip import clip
from fantasyid_lab.people.head import load as load_head
from fantasyid_lab.people.person import VALIDATION, person

T, EYES = 25, 0.063


@pytest.fixture
def template() -> LandmarkTemplate:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(68, 3, generator=generator) * torch.tensor([0.05, 0.06, 0.03])
    points[:2] = torch.tensor([[-EYES / 2, 0.03, 0.05], [EYES / 2, 0.03, 0.05]])
    stable = torch.arange(68) % 3 == 0
    return LandmarkTemplate(points, stable)


def project(points: torch.Tensor, yaw=0.0, pitch=0.0, roll=0.0, scale=900.0, shift=(80.0, 80.0)) -> torch.Tensor:
    """Points (N, 3) or (T, N, 3), turned by angles (T,) in degrees, in px of a picture: (T, N, 2)."""
    angles = [torch.as_tensor(a, dtype=torch.float32).expand(T) for a in (yaw, pitch, roll)]
    turned = points @ rotation(*angles).mT
    return turned[..., :2] * torch.tensor([scale, -scale]) + torch.tensor(shift)


def swing(degrees: float) -> torch.Tensor:
    return degrees * torch.sin(torch.linspace(0, 2 * math.pi, T))


def smiling(template: LandmarkTemplate) -> torch.Tensor:
    """(T, N, 3): what is not stable rises by up to 5 mm."""
    amount = torch.linspace(0, 1, T)[:, None, None]
    return template.points + amount * torch.tensor([0.0, 0.005, 0.0]) * ~template.stable[:, None]


def test_a_still_clip_does_not_move(template: LandmarkTemplate):
    found = motion.measure(project(template.points, yaw=20.0), template)
    assert found.face == pytest.approx(0, abs=1e-3)
    assert found.head == pytest.approx(0, abs=1e-2)
    assert found.shift == pytest.approx(0, abs=1e-3)


@settings(deadline=None)  # the first call loads LAPACK
@given(yaw=st.floats(-40, 40), pitch=st.floats(-25, 25), roll=st.floats(-30, 30))
def test_the_pose_is_the_one_the_head_was_given(yaw: float, pitch: float, roll: float):
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)) * 0.05
    camera = motion.fit_cameras(project(points, yaw, pitch, roll).double(), points.double(), torch.ones(20, dtype=bool))
    expected = torch.tensor([yaw, pitch, roll], dtype=torch.float64).expand(T, 3)
    torch.testing.assert_close(motion.pose_of(camera), expected, atol=0.05, rtol=0)


def test_a_turning_mask_has_head_motion_only(template: LandmarkTemplate):
    found = motion.measure(project(template.points, yaw=swing(30), pitch=swing(10), roll=5.0), template)
    assert found.face == pytest.approx(0, abs=1e-3)
    assert found.head == pytest.approx(math.hypot(30, 10) * (0.5 * 24 / 25) ** 0.5, rel=0.02)


def test_another_persons_mask_hardly_moves_while_it_turns(template: LandmarkTemplate):
    """The template is not the person: what is left of the turn is small beside a smile."""
    other = template.points + 0.003 * torch.randn(68, 3, generator=torch.Generator().manual_seed(2))
    turning = motion.measure(project(other, yaw=swing(25)), template)
    smile = motion.measure(project(smiling(template)), template)
    assert turning.face < 0.25 * smile.face


def test_a_smile_is_face_motion_whatever_the_head_does(template: LandmarkTemplate):
    still = motion.measure(project(smiling(template)), template)
    spread = torch.linspace(0, 1, T).std(correction=0).item()
    moving = (~template.stable).float().mean().item()
    assert still.face == pytest.approx(100 * 0.005 * spread * moving**0.5 / EYES, rel=0.02)
    assert still.head == pytest.approx(0, abs=0.01)
    turning = motion.measure(project(smiling(template), yaw=swing(20), roll=swing(15)), template)
    assert turning.face == pytest.approx(still.face, rel=0.05)


def test_a_smile_that_grows_with_a_turn_is_still_seen(template: LandmarkTemplate):
    still = motion.measure(project(smiling(template)), template)
    turning = motion.measure(project(smiling(template), yaw=torch.linspace(0, 30, T)), template)
    assert turning.face == pytest.approx(still.face, rel=0.2)


def test_size_and_place_of_the_face_do_not_matter(template: LandmarkTemplate):
    near = motion.measure(project(smiling(template), scale=900.0), template)
    far = motion.measure(project(smiling(template), scale=300.0, shift=(500.0, 20.0)), template)
    assert near.face == pytest.approx(far.face, rel=1e-3)


def test_a_shift_is_neither_face_nor_turn(template: LandmarkTemplate):
    landmarks = project(template.points) + torch.linspace(0, 30, T)[:, None, None]
    found = motion.measure(landmarks, template)
    assert found.face == pytest.approx(0, abs=1e-3)
    assert found.head == pytest.approx(0, abs=1e-2)
    assert found.shift > 10


def test_frames_without_a_face_are_left_out(template: LandmarkTemplate):
    landmarks = project(smiling(template), yaw=swing(20))
    landmarks[3] = float("nan")
    found = motion.measure(landmarks, template)
    assert found.face_per_frame[3].isnan()
    assert found.face_per_frame.isfinite().sum() == T - 1
    assert math.isfinite(found.face)


@pytest.fixture(scope="module")
def template_of_people() -> LandmarkTemplate:
    return motion.head_template()


def test_strengths_move_the_face_as_much_as_the_landmarks_that_they_move(template_of_people: LandmarkTemplate):
    """Exact landmarks and exact strengths of the same clips, heads turning: two ways to the same number."""
    drawn = [clip(person(VALIDATION[i]), 1) for i in range(24)]
    head, turns = load_head(), [torch.from_numpy(one.pose) for one in drawn]
    by_landmarks, by_strengths, frozen = [], [], []
    for one, turn in zip(drawn, turns, strict=True):
        strengths, still = torch.from_numpy(one.expression), torch.zeros(T, 50)
        shape = one.person.shape_code[None].expand(T, -1)
        landmarks, mask = (head.vertices(shape, x, turn)[:, head.landmarks] for x in (strengths, still))
        landmarks, mask = (x[..., :2] * torch.tensor([500.0, -500.0]) for x in (landmarks, mask))
        by_landmarks.append(motion.measure(landmarks, template_of_people).face)
        by_strengths.append(motion.measure(landmarks, template_of_people, strengths).face)
        frozen.append(motion.measure(mask, template_of_people, still).face)
    assert sum(by_strengths) == pytest.approx(sum(by_landmarks), rel=0.1)
    together = torch.corrcoef(torch.tensor([by_strengths, by_landmarks]))[0, 1]
    assert together > 0.9
    assert max(frozen) == 0


@settings(deadline=None, max_examples=25)
@given(pixels=st.floats(0, 4), seed=st.integers(0, 1000))
def test_trembling_landmarks_are_no_face_motion(pixels: float, seed: int, template_of_people: LandmarkTemplate):
    generator = torch.Generator().manual_seed(seed)
    strengths = torch.linspace(0, 1, T)[:, None] * torch.rand(50, generator=generator)
    landmarks = project(template_of_people.points, yaw=swing(20))
    trembling = landmarks + pixels * torch.randn(landmarks.shape, generator=generator)
    calm, trembles = (motion.measure(x, template_of_people, strengths) for x in (landmarks, trembling))
    assert trembles.face == pytest.approx(calm.face)
    assert trembles.lasting == pytest.approx(calm.lasting)


def test_flicker_of_strengths_does_not_last(template_of_people: LandmarkTemplate):
    """Ten clips: white noise of the strengths raises face motion, what lasts stays as it was."""
    generator = torch.Generator().manual_seed(0)
    smile = (torch.linspace(0, 1, T) > 0.4).float()[:, None] * torch.rand(50, generator=generator)
    landmarks = project(template_of_people.points)
    calm = motion.measure(landmarks, template_of_people, smile)
    noisy = [
        motion.measure(landmarks, template_of_people, smile + 0.2 * torch.randn(T, 50, generator=generator))
        for _ in range(10)
    ]
    assert calm.lasting == pytest.approx(calm.face, rel=0.1)
    assert sum(x.face for x in noisy) / 10 > 1.2 * calm.face
    assert sum(x.lasting for x in noisy) / 10 == pytest.approx(calm.lasting, rel=0.1)


def test_copied_poses_tie_fully_and_free_ones_hardly():
    generator = torch.Generator().manual_seed(0)
    reference = 20 * torch.randn(200, 3, generator=generator)
    free = 20 * torch.randn(200, 3, generator=generator)
    assert motion.copy_paste_index(reference, reference) == pytest.approx(1)
    assert motion.copy_paste_index(reference + 7, reference) == pytest.approx(1)  # turned alike, all of them
    assert abs(motion.copy_paste_index(free, reference)) < 0.15
    assert motion.copy_paste_index(0.5 * reference + 0.5 * free, reference) == pytest.approx(0.5, abs=0.1)


def people(count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of people, and of the same people seen again."""
    generator = torch.Generator().manual_seed(seed)
    first = F.normalize(torch.randn(count, 64, generator=generator), dim=1)
    again = F.normalize(first + noise * torch.randn(count, 64, generator=generator), dim=1)
    return first, again


def test_everyone_is_found_again_and_shuffled_people_at_chance():
    first, again = people(200, 0.02)
    assert likeness.reidentification(again, first) == 1
    shuffled = again[torch.randperm(200, generator=torch.Generator().manual_seed(3))]
    assert likeness.reidentification(shuffled, first) < 5 / 200


def test_as_many_as_guessing_may_find_are_no_more_than_chance():
    first, again = people(30, 0.01)
    again[3:] = float("nan")
    assert measure.chance_limit(30) == 3 / 30
    assert likeness.reidentification(again, first) <= measure.chance_limit(30)


def test_who_shows_no_face_is_not_found():
    first, again = people(10, 0.01)
    again[4] = float("nan")
    assert likeness.reidentification(again, first) == pytest.approx(0.9)
    first[7] = float("nan")
    assert likeness.reidentification(again, first) == pytest.approx(0.8)
    assert likeness.rank(again, first)[4] == 10


def test_similarity_to_a_reference_and_between_frames():
    first, _ = people(1, 0)
    frames = first.expand(5, -1).clone()
    assert likeness.inter_frame_similarity(frames) == pytest.approx(1)
    frames[2] = -first[0]
    frames[4] = float("nan")
    torch.testing.assert_close(likeness.reference_similarity(frames, first[0])[:4], torch.tensor([1.0, 1, -1, 1]))
    assert likeness.inter_frame_similarity(frames) == pytest.approx(-1 / 3)  # 1, -1, -1 of the pairs that show a face
    assert likeness.average(frames).norm() == pytest.approx(1)


def test_the_normalised_similarity_runs_from_stranger_to_truth():
    stranger, truth = torch.tensor([0.2, 0.4, 0.3]), torch.tensor([0.8, 1.0, 0.9])
    assert likeness.normalised_similarity(stranger, stranger, truth) == pytest.approx(0)
    assert likeness.normalised_similarity(truth, stranger, truth) == pytest.approx(1)
    lost = torch.tensor([0.5, float("nan"), 0.6])
    assert likeness.normalised_similarity(lost, stranger, truth) == pytest.approx(0.5)


def test_the_meters_template_is_the_mean_synthetic_head():
    """The core has its 68 points in a file of its own, so that nodes need nothing of the lab."""
    head = load_head()
    moves = head.expression_basis[head.landmarks]
    template = head_template()
    assert torch.equal(template.points, head.template[head.landmarks])
    assert torch.equal(template.expression_basis, moves)
    assert torch.equal(template.stable, moves.norm(dim=1).amax(1) < 0.003)
