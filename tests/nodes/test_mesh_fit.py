"""Whether the mesh lies on the face is measured, and said under the node where it does not."""

import math

import pytest
import torch

from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.images import load_photo
from fantasyid_core.reconstruction import face_mesh
from fantasyid_core.reconstruction.deca_input import FACE_CROP, WHOLE_PHOTO
from fantasyid_core.reconstruction.face_mesh import SHAPE_ONLY, FaceMesh
from fantasyid_lab import nano
from tools.comfy_host import ComfyServer
from tools.graphs import node


@pytest.fixture(scope="module")
def face(portrait) -> DetectedFace:
    """A face that is a fifth of its photo wide."""
    return detect(load_photo(portrait))[0]


@pytest.fixture(scope="module")
def model() -> nano.Nano:
    return nano.read(nano.SHIPPED)


def misfit(face: DetectedFace, model: nano.Nano, look_at: str) -> float:
    mesh = face_mesh.reconstruct(face, model.regressor, model.face, SHAPE_ONLY, look_at)
    return face_mesh.misfit(mesh, face, model.face)


def test_it_lies_on_the_face_in_the_crop_that_the_regressor_knows(face: DetectedFace, model: nano.Nano):
    assert misfit(face, model, FACE_CROP) < 0.2
    assert misfit(face, model, WHOLE_PHOTO) > 1
    assert face_mesh.misfit(face_mesh.from_landmarks(face, model.face), face, model.face) < 0.05


def test_a_shift_is_measured_in_distances_of_the_eyes(face: DetectedFace, model: nano.Nano):
    mesh = face_mesh.from_landmarks(face, model.face)
    eyes = float((face.landmarks[1] - face.landmarks[0]).norm())
    moved = FaceMesh(mesh.vertices, mesh.faces, mesh.shape_code, mesh.in_photo + torch.tensor([2 * eyes, 0.0, 0.0]))
    assert face_mesh.misfit(moved, face, model.face) == pytest.approx(2, abs=0.05)


def test_of_a_mesh_from_a_file_it_is_not_known(face: DetectedFace, model: nano.Nano):
    assert math.isnan(face_mesh.misfit(FaceMesh(model.face.template), face, model.face))


def test_the_node_says_it(comfy: ComfyServer, photo: str):
    def run(look_at: str) -> str:
        settings = {"model_name": "FantasyID-nano", "mode": "shape only", "method": "DECA", "look_at": look_at}
        done = comfy.run(
            {
                "photo": node("LoadImage", image=photo),
                "face": node("FantasyIDDetectFace", image=["photo", 0], select="largest", index=0, min_score=0.6),
                "mesh": node("FantasyIDReconstruct", face=["face", 0], **settings),
                "show": node("PreviewImage", images=["mesh", 2]),
            }
        )
        assert done.status == "success", done.error
        return comfy.notes.get("mesh", "")

    assert "set 'look_at' to 'face crop'" in run(WHOLE_PHOTO)
    assert run(FACE_CROP) == ""
