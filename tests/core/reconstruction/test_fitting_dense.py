"""Shape, expression and pose from the 478 points that the network reads in photos of synthetic people."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from fantasyid_core.detection.faces import detect
from fantasyid_core.errors import MeshError, WeightsError
from fantasyid_core.reconstruction import face_mesh, flame
from fantasyid_core.reconstruction.dense_fit import fit_dense
from fantasyid_core.reconstruction.landmark_fit import at_landmarks
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
    error = shape_errors(model, read("photos"))
    assert error[8] < error[1] < 0.8 * error[0]


def test_the_head_s_pose_is_read(model):
    """Degrees; the heads are turned as far as ±60° of yaw and ±25° of pitch and roll."""
    off = pose_errors(model, read("poses")).abs()
    assert (off.median(0).values < torch.tensor([5.0, 6.0, 3.0])).all()


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
        fit_dense(replace(model, dense_landmarks=None), torch.rand(1, 1, 478, 2))


@pytest.mark.parametrize("name", ["denselandmarks", "densedeviations", "denseerrors"])
def test_a_damaged_file_is_named(tmp_path, name):
    tensors = load_file(MODEL)
    tensors[name] = tensors[name][:400].contiguous()
    save_file(tensors, tmp_path / "generic_model.safetensors")
    with pytest.raises(WeightsError, match="damaged"):
        flame.load(tmp_path / "generic_model.safetensors")
