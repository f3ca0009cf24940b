"""One photo and its mesh → new views, against renders of synthetic people from the same sides; altered copies."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fantasyid_core.detection.alignment import BORDER_GREY, align
from fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.detection.head_pose import HeadPose
from fantasyid_core.errors import ImageError, MeshError
from fantasyid_core.reconstruction.face_mesh import FaceMesh
from fantasyid_core.reconstruction.rasteriser import visible
from fantasyid_core.views.augmentation import augment
from fantasyid_core.views.collection import FaceViews
from fantasyid_core.views.novel_views import append_rendered, grid, new_views
from fantasyid_lab.people.camera import project
from fantasyid_lab.people.clip import still
from fantasyid_lab.people.head import LEFT_EYE, RIGHT_EYE, SKIN, load
from fantasyid_lab.people.person import person
from fantasyid_lab.people.render import render
from tools.measure.reconstruction import face_model
from tools.measure.views import read_yaw, turned

SIDES = ((0, 0), (30, 0), (-30, 0), (0, 15), (45, 0), (-45, 0))
SIZE = 288
FACE = (slice(176, 448), slice(128, 384))  # of the crop


def head_faces() -> torch.Tensor:
    head = load()
    return head.faces[(head.parts == SKIN) | (head.parts == LEFT_EYE) | (head.parts == RIGHT_EYE)]


@pytest.fixture(scope="module")
def sides() -> SimpleNamespace:
    """One unseen person from six sides in even light: pictures, five landmarks, the true mesh in each."""
    clip = still(person(2_000_001), 0)
    pose = np.array([(*side, 0) for side in SIDES], np.float32)
    camera = np.tile(np.array([[0, -0.03, 0.4, 3.0, 0]], np.float32), (len(SIDES), 1))
    light = dataclasses.replace(clip.scene.light, lamp=np.zeros(3, np.float32), sky=np.full(3, 0.9, np.float32))
    scene = dataclasses.replace(clip.scene, light=light)
    expression = np.repeat(clip.expression, len(SIDES), 0)
    clip = dataclasses.replace(clip, pose=pose, camera=camera, scene=scene, expression=expression)
    rendered = render([clip], SIZE)
    shape = clip.person.shape_code[None].expand(len(SIDES), -1)
    vertices = load().vertices(shape, torch.from_numpy(expression), torch.from_numpy(pose))
    xy = project(vertices, torch.from_numpy(camera), SIZE)[..., :2]
    z = -vertices[..., 2:] * SIZE / 0.4
    return SimpleNamespace(
        frames=rendered.frames[0],
        landmarks=rendered.landmarks[0, :, :5],
        in_photo=torch.cat([xy, z], 2),
        vertices=vertices,
    )


def photo_of(sides: SimpleNamespace, side: tuple[int, int]) -> tuple[DetectedFace, FaceMesh]:
    i = SIDES.index(side)
    crop, to_crop = align(sides.frames[i], sides.landmarks[i])
    box = torch.cat([sides.landmarks[i].amin(0) - 20, sides.landmarks[i].amax(0) + 20])
    face = DetectedFace(sides.frames[i], box, sides.landmarks[i], 0.9, crop, to_crop, HeadPose(*side))
    return face, FaceMesh(sides.vertices[i], head_faces(), None, sides.in_photo[i])


@pytest.fixture(scope="module")
def frontal(sides: SimpleNamespace) -> FaceViews:
    """The frontal photo from all the other sides."""
    return new_views(*photo_of(sides, (0, 0)), SIDES)


def view_from(views: FaceViews, side: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    (i,) = [i for i, pose in enumerate(views.poses.round().int().tolist()) if tuple(pose[:2]) == side]
    return views.crops[i], views.coverage[i] > 0


# Against the truth


@pytest.mark.parametrize("side", SIDES[1:])
def test_a_new_view_is_what_the_camera_sees_from_there(sides, frontal, side):
    crop, covered = view_from(frontal, side)
    i = SIDES.index(side)
    true, _ = align(sides.frames[i], sides.landmarks[i])
    wrong = (crop - true).abs().mean(-1)[FACE][covered[FACE]]
    assert wrong.mean() < 0.065, "the light falls on the turned head a little differently"
    assert covered[FACE].float().mean() > 0.55
    places = torch.zeros_like(covered)
    empty = F.max_pool2d(F.max_pool2d((~covered)[None].float(), (41, 1), 1, (20, 0)), (1, 41), 1, (0, 20))[0]
    places[FACE] = empty[FACE] == 0
    unturned, _ = align(sides.frames[0], sides.landmarks[0])
    assert alike(crop, true, places) > 0.9
    assert alike(unturned, true, places) < alike(crop, true, places) - 0.05


def alike(one: torch.Tensor, other: torch.Tensor, places: torch.Tensor) -> float:
    """Correlation of two pictures' details, 2 to 20 px in size, which even light does not change."""
    grey = torch.stack([one, other]).mean(-1)[:, None]
    coarse = F.avg_pool2d(F.avg_pool2d(grey, (41, 1), 1, (20, 0)), (1, 41), 1, (0, 20))
    detail = F.avg_pool2d(grey, 5, 1, 2) - coarse
    return float(torch.corrcoef(detail[:, 0][:, places])[0, 1])


def test_a_surface_that_the_photo_does_not_show_stays_empty(sides):
    """By the true meshes' depth buffers: which triangles the photo, and which the true view shows at each pixel."""
    face, mesh = photo_of(sides, (30, 0))
    views = new_views(face, mesh, [(-30, 0), (-45, 0)], min_coverage=0.0)
    for side, share in (((-30, 0), 0.75), ((-45, 0), 0.65)):
        _, covered = view_from(views, side)
        fine = sides.in_photo[SIDES.index((30, 0))] * 4
        known = visible(fine[None], mesh.faces, SIZE * 4, SIZE * 4).unique()
        i = SIDES.index(side)
        _, to_crop = align(sides.frames[i], sides.landmarks[i])
        there = sides.in_photo[i]
        there = torch.cat([there[:, :2] @ to_crop[:, :2].T + to_crop[:, 2], there[:, 2:]], 1)
        truth = visible(there[None], mesh.faces, 512, 512)[0]
        shown = (truth >= 0)[FACE]
        unknown = ~torch.isin(truth, known)[FACE] & shown
        assert unknown.float().sum() > 0.1 * shown.sum(), "there is something to hide"
        assert (covered[FACE] & unknown).sum() < 0.04 * covered[FACE].sum()
        assert covered[FACE].sum() < share * shown.sum()


def test_empty_places_are_grey_and_the_share_is_the_score(sides, frontal):
    face, _ = photo_of(sides, (0, 0))
    for crop, coverage, score in zip(frontal.crops[1:], frontal.coverage[1:], frontal.scores[1:], strict=True):
        assert set(coverage.unique().tolist()) == {0.0, 1.0}
        assert (crop[coverage == 0] == torch.tensor(BORDER_GREY)).all()
        assert 0.5 * face.quality <= score <= face.quality
    assert "The photo shows" in frontal.report


def test_the_photo_comes_first_then_the_nearest_poses(sides, frontal):
    face, _ = photo_of(sides, (0, 0))
    assert torch.equal(frontal.crops[0], face.crop)
    assert frontal.origins == ("photo", *["rendered"] * 5)
    away = frontal.poses[:, :2].abs().amax(1).tolist()
    assert away == sorted(away)
    assert (frontal.coverage[0] == 1).all()
    assert "1 of the grid's poses are the photo's own" in frontal.report


def test_a_small_turn_hardly_changes_the_picture(sides):
    face, mesh = photo_of(sides, (0, 0))
    crop, covered = view_from(new_views(face, mesh, [(6, 0)]), (6, 0))
    assert (crop - face.crop).abs().mean(-1)[FACE][covered[FACE]].mean() < 0.02


def test_what_lies_outside_of_the_photo_is_not_covered(sides):
    face, mesh = photo_of(sides, (0, 0))
    cut = int(sides.landmarks[0, 2, 0])  # through the nose
    half = dataclasses.replace(face, image=face.image[:, :cut])
    crop, covered = view_from(new_views(half, mesh, [(6, 0)], min_coverage=0.0), (6, 0))
    whole, all_covered = view_from(new_views(face, mesh, [(6, 0)]), (6, 0))
    assert covered[:, 290:].sum() < 0.02 * all_covered[:, 290:].sum()
    both = covered & all_covered
    assert both.sum() > 0.3 * all_covered.sum()
    assert (crop - whole).abs()[both].mean() < 0.01


def test_views_that_show_too_little_are_left_out(sides):
    views = new_views(*photo_of(sides, (45, 0)), [(-45, 0), (30, 0)], min_coverage=0.6)
    assert views.poses[1:, 0].tolist() == [30]
    assert "1 were left out: the photo shows less than 60%" in views.report
    nothing = new_views(*photo_of(sides, (45, 0)), [(-45, 0)], min_coverage=1.0)
    assert len(nothing.crops) == len(nothing.coverage) == 1


@pytest.fixture(scope="module")
def astronaut_turned(astronaut: torch.Tensor) -> FaceViews:
    """A real photo, its views turned to −25° and 25° on a mesh fitted to it; the yaw that its own pose has is 0."""
    return turned(ensure_dense_landmarks(detect(astronaut)[0]), face_model())


def test_a_real_photo_turns_as_far_as_it_is_asked_to(astronaut_turned: FaceViews):
    """As for the masked true pictures of rendered people, which are read as turned by 24° too: docs/views.md."""
    for yaw, crop, coverage in zip(
        astronaut_turned.poses[1:, 0], astronaut_turned.crops[1:], astronaut_turned.coverage[1:], strict=True
    ):
        assert 18 < read_yaw(crop, coverage, face_model()) * yaw.sign() < 32
        assert detect(crop)[0].score > 0.7


def test_eyes_and_mouth_are_seen_in_it(astronaut_turned: FaceViews):
    """The mesh has sockets and a gap there."""
    eyes, mouth = (slice(222, 252), slice(165, 345)), (slice(350, 390), slice(200, 310))
    for coverage in astronaut_turned.coverage[1:]:
        assert coverage[eyes].mean() > 0.95
        assert coverage[mouth].mean() > 0.9


# Bad input


def test_a_mesh_that_knows_no_photo_is_refused(sides):
    face, mesh = photo_of(sides, (0, 0))
    for lost in ("in_photo", "faces"):
        with pytest.raises(MeshError, match="Reconstruct 3D"):
            new_views(face, dataclasses.replace(mesh, **{lost: None}), [(20, 0)])
    with pytest.raises(MeshError, match="NaN"):
        new_views(face, dataclasses.replace(mesh, in_photo=mesh.in_photo * torch.nan), [(20, 0)])


def test_a_mesh_beside_the_face_covers_nothing(sides):
    face, mesh = photo_of(sides, (0, 0))
    away = dataclasses.replace(mesh, in_photo=mesh.in_photo + 5000)
    assert len(new_views(face, away, [(20, 0), (-20, 0)]).crops) == 1


# The grid, and views put together


def test_grid_from_left_to_right_and_from_up_to_down():
    assert grid(30, 10, 3, 2) == [(-30, 10), (0, 10), (30, 10), (-30, -10), (0, -10), (30, -10)]
    assert grid(30, 10, 1, 1) == [(0, 0)]


def test_new_views_are_added_to_collected_ones(frontal):
    bare = FaceViews(torch.rand(2, 512, 512, 3), torch.tensor([0.9, 0.8]), report="two")
    both = append_rendered(bare, frontal)
    assert torch.equal(both.crops, torch.cat([bare.crops, frontal.crops[1:]]))
    assert len(both.origins) == len(both.poses) == len(both.coverage) == len(both.scores) == 7
    assert (both.coverage[:2] == 1).all()
    assert both.report == f"two\n{frontal.report}"


# Altered copies


def test_the_same_seed_alters_in_the_same_way(frontal):
    one, again, other = (augment(frontal, 4, seed) for seed in (7, 7, 8))
    assert torch.equal(one.crops, again.crops)
    assert not torch.equal(one.crops[6:], other.crops[6:])
    assert torch.equal(augment(frontal, 2, 7).crops, one.crops[:8])
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    augment(frontal, 1, 7)
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's random numbers change"


def test_altered_copies_are_like_their_views_and_stay_empty_where_they_are(frontal):
    views = augment(frontal, 6, seed=1)
    assert torch.equal(views.crops[:6], frontal.crops)
    assert views.origins[6:] == ("augmented",) * 6
    assert torch.equal(views.scores[6:], frontal.scores)
    assert views.crops.min() >= 0
    assert views.crops.max() <= 1
    for i in range(6):
        changed = (views.crops[6 + i] - frontal.crops[i]).abs().mean()
        assert 0.002 < changed < 0.2
        assert (views.poses[6 + i] - frontal.poses[i]).abs().max() <= 4
        empty = views.coverage[6 + i] == 0
        assert (views.crops[6 + i][empty] - torch.tensor(BORDER_GREY)).abs().max() < 1e-6 if empty.any() else i == 0


def test_strength_0_alters_nothing(frontal):
    views = augment(frontal, 2, seed=3, strength=0.0)
    assert (views.crops[6:] - frontal.crops[:2]).abs().max() < 0.01
    assert augment(frontal, 0) is frontal
    with pytest.raises(ImageError, match="expected 0 or more"):
        augment(frontal, -1)
