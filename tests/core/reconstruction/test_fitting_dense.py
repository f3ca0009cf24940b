"""Shape, expression and pose from the 478 points that the network reads in photos of synthetic people."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fantasyid_core.detection import dense_features
from fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from fantasyid_core.detection.dense_pose import pose_from_dense
from fantasyid_core.detection.faces import detect
from fantasyid_core.errors import MeshError, WeightsError
from fantasyid_core.reconstruction import dense_transfer, face_mesh, flame
from fantasyid_core.reconstruction.dense_fit import fit_dense
from fantasyid_core.reconstruction.dense_shape import points_at_rest
from fantasyid_core.reconstruction.landmark_fit import at_landmarks
from fantasyid_lab.people import head as heads
from fantasyid_lab.people.person import TEST, person
from tools.assets.dense_points import MODEL
from tools.measure.dense import FIXTURE, expression_correlations, pose_errors, shape_errors
from tools.measure.reconstruction import face_model


@pytest.fixture(scope="module")
def model() -> flame.Flame:
    return face_model()


def read(name: str) -> torch.Tensor:
    """Points as the network read them in rendered photos; `python -m tools.measure.dense --people 20 --save`."""
    with safe_open(FIXTURE, "pt") as file:
        return file.get_tensor(name)


def test_a_shape_comes_nearer_to_the_person_s_with_one_photo_and_again_with_eight(model):
    """Millimetres, of people that nothing was learned from."""
    error = shape_errors(model, read("photos"))
    assert error[0] > 2.2
    assert error[1] < 1.9
    assert error[8] < 1.4


def test_without_depths_the_shape_is_the_fit_s(model):
    photos = read("photos")[:2, :1]
    flat = fit_dense(model, photos[..., :2])
    assert not torch.allclose(flat.shape, fit_dense(model, photos).shape, atol=0.1)


def test_a_photo_that_does_not_count_changes_nothing_of_the_shape(model):
    photos = read("photos")[:1]
    strange = torch.cat([photos[:, :2], photos[:, 2:3] * torch.tensor([0.8, 1.2, 1.0])], 1)
    alone = points_at_rest(strange[:, :2])
    both = points_at_rest(strange, torch.tensor([[1.0, 1.0, 0.0]]))
    assert torch.allclose(both, alone, atol=2e-5)


def test_the_head_s_pose_is_read():
    """Degrees, of twenty heads turned as far as ±60° of yaw and ±25° of pitch and roll; of 200: docs/detection.md."""
    off = pose_errors(read("poses")).abs()
    assert (off.median(0).values < torch.tensor([1.8, 3.0, 1.0])).all()


def test_a_mirrored_face_gives_the_mirrored_pose_and_a_turned_photo_the_turned_one():
    points = read("poses")[:, 0]
    pairs = dense_features.load(points.device)["pairs"]
    pose, mirrored = pose_from_dense(points), pose_from_dense(points[:, pairs] * torch.tensor([-1.0, 1, 1]))
    assert torch.allclose(mirrored, pose * torch.tensor([-1.0, 1, -1]), atol=1e-2)
    x, y, z = points.unbind(-1)
    clockwise = pose_from_dense(torch.stack([-y, x, z], -1))
    assert torch.allclose(clockwise, pose + torch.tensor([0.0, 0, 90]), atol=1e-2)


@pytest.mark.parametrize("seed", TEST[:2])
def test_the_points_are_found_on_a_face_of_another_topology(seed):
    """The lab's head with a person's shape, smaller and elsewhere, knowing five vertices, as FLAME's template does."""
    head = heads.load()
    shape = person(seed).shape_code
    faces = head.faces[(head.parts == heads.SKIN) | (head.parts == heads.LEFT_EYE) | (head.parts == heads.RIGHT_EYE)]
    used, faces = faces.unique(return_inverse=True)
    place = torch.tensor([0.01, -0.03, 0.02])
    template = (0.96 * head.vertices(shape[None])[0] + place)[used]
    five = torch.cdist(head.template[head.landmarks[:5]], head.template[used]).argmin(1)
    other = replace(face_model(), template=template, faces=faces, landmarks=five, dense_landmarks=None)
    arrays = dense_features.load(template.device)
    true = 0.96 * (arrays["rest"] + arrays["shapes"] @ shape) + place
    weights, _ = dense_transfer.register(other)
    off = 1000 * (weights @ template - true).norm(dim=-1)
    assert off.mean() < 1.5
    assert off.quantile(0.9) < 3


def test_flame_2023_open_is_found_by_its_name_and_2020_goes_first(tmp_path):
    (tmp_path / "flame2023_Open.pkl").touch()
    assert face_mesh.find_face_model(tmp_path).name == "flame2023_Open.pkl"
    (tmp_path / "generic_model.pkl").touch()
    assert face_mesh.find_face_model(tmp_path).name == "generic_model.pkl"


def test_what_is_no_face_is_left_as_it_is(sphere):
    vertices, faces = sphere(20)
    five = torch.randint(len(vertices), (5,), generator=torch.Generator().manual_seed(0))
    ball = replace(face_model(), template=vertices, faces=faces, landmarks=five, dense_landmarks=None)
    assert dense_transfer.with_known_points(ball) is ball


def test_what_a_face_does_in_a_clip_is_followed(model):
    correlations = expression_correlations(model, read("clips"))
    assert sum(map(len, correlations.values())) >= 3
    assert min(min(own, default=1.0) for own in correlations.values()) > 0.8


def test_a_mesh_from_dense_landmarks_lies_on_the_photo_s_face(model, astronaut):
    """Eyes, nose and mouth, against the detector's, in distances of the eyes."""
    face = ensure_dense_landmarks(detect(astronaut[0])[0])
    mesh = face_mesh.from_dense_landmarks(face, model)
    assert face_mesh.misfit(mesh, face, model) < 0.15
    points = at_landmarks(model.dense_landmarks, mesh.in_photo[:, :2])
    apart = (points - face.dense_landmarks[:, :2]).norm(dim=-1).mean()
    assert apart < 0.05 * float(face.box[2] - face.box[0])


def test_photos_share_one_shape_and_faces_are_read_where_that_is_wanting(model, astronaut):
    """Here the photo and its mirror image; the mesh is that of the first."""
    face, mirrored = (detect(photo)[0] for photo in (astronaut[0], astronaut[0].flip(1)))
    alone = face_mesh.from_dense_landmarks(face, model)
    both = face_mesh.from_dense_landmarks(face, model, others=[mirrored])
    again = face_mesh.from_dense_landmarks(mirrored, model, others=[face])
    assert not torch.allclose(both.shape_code, alone.shape_code, atol=0.05)
    torch.testing.assert_close(both.shape_code, again.shape_code, atol=0.05, rtol=0)
    assert (both.in_photo - alone.in_photo)[:, :2].norm(dim=1).mean() < 3


def test_a_face_model_that_does_not_know_the_points_is_refused(model):
    with pytest.raises(MeshError, match="478 dense landmarks"):
        fit_dense(replace(model, dense_landmarks=None, landmarks=None), torch.rand(1, 1, 478, 2))


@pytest.mark.parametrize("name", ["denselandmarks", "densedeviations", "denseerrors"])
def test_a_damaged_file_is_named(tmp_path, name):
    tensors = load_file(MODEL)
    tensors[name] = tensors[name][:400].contiguous()
    save_file(tensors, tmp_path / "generic_model.safetensors")
    with pytest.raises(WeightsError, match="damaged"):
        flame.load(tmp_path / "generic_model.safetensors")
