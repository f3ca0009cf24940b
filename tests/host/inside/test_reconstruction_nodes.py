"""The nodes that make a mesh, inside ComfyUI: from DECA and FLAME in a model folder, or from a vertex file."""

import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from pack.fantasyid_core.detection.faces import DetectedFace
from pack.fantasyid_core.errors import MeshError, SaveError, WeightsMissingError
from pack.fantasyid_core.images import load_photo
from pack.fantasyid_core.reconstruction.mesh_files import write_ply
from pack.fantasyid_lab.dummy_head import head
from pack.nodes import reconstruction
from pack.nodes.detection import FantasyIDDetectFace
from pack.nodes.host import resident
from pack.nodes.reconstruction import FantasyIDLoadMesh, FantasyIDReconstruct, FantasyIDSaveMesh, FantasyIDTurntable
from pack.tests.support.in_comfyui import FACE, execute
from torch import Tensor

from tools.comfy_version import save_glb_module


@pytest.fixture(scope="module", autouse=True)
def flame_file(base, standin) -> Path:
    """Of a model with DECA and FLAME; there are one with FLAME alone, one with neither, vertex files in the input."""
    models, people = base / "models" / "fantasyid", base / "input" / "people"
    shutil.copytree(standin, models / "standin")
    for folder in (models / "bare" / "transformer", models / "flame alone" / "transformer", people):
        folder.mkdir(parents=True)
    face_model = models / "flame alone" / "face_model"
    face_model.mkdir()
    shutil.copy(standin / "face_model" / "generic_model.safetensors", face_model)
    write_ply(people / "anne.ply", head().template)
    shutil.copy(people / "anne.ply", base / "outside.ply")
    (base / "input" / "broken.ply").write_bytes((people / "anne.ply").read_bytes()[:500])
    return models / "standin" / "face_model" / "generic_model.safetensors"


def reconstruct(face: DetectedFace = FACE, model: str = "standin", mode: str = "shape only", **choice) -> tuple:
    return execute(FantasyIDReconstruct, face=face, model_name=model, mode=mode, **choice).args


@pytest.fixture(scope="module")
def mesh():
    return reconstruct()[0]


@pytest.fixture(scope="module")
def photo(portrait) -> Tensor:
    return load_photo(portrait)[None]


@pytest.fixture(scope="module")
def face(photo) -> DetectedFace:
    return execute(FantasyIDDetectFace, image=photo, select="largest", index=0, min_score=0.6).args[0]


@pytest.mark.parametrize("mode", ["as released", "shape only"])
def test_a_face_becomes_a_mesh_and_its_picture(mode):
    mesh, preview, overlay, _ = reconstruct(mode=mode)
    assert [x.shape for x in (mesh.vertices, mesh.faces, mesh.shape_code)] == [(642, 3), (1280, 3), (100,)]
    assert (preview.shape, overlay.shape) == ((1, 512, 512, 3), (1, 200, 300, 3))
    assert (preview > 0.2).float().mean() > 0.1, "the preview shows the mesh"


def test_deca_and_the_face_model_are_read_once_and_held_by_comfyui(flame_file, mesh):
    def held() -> list:
        return [resident._held[build][1] for build in (resident.deca_regressor, resident.face_model)]

    reconstruct()
    regressor, flame = held()
    assert {regressor, flame} <= set(comfy.model_management.loaded_models())
    reconstruct()
    assert held() == [regressor, flame]
    flame_file.touch()
    reconstruct()
    assert held()[0] is regressor
    assert held()[1] is not flame, "a changed file is read anew"
    comfy.model_management.unload_all_models()
    assert torch.equal(reconstruct()[0].vertices, mesh.vertices)


@pytest.mark.parametrize(
    ("model", "choice"),
    [
        ("standin", {"look_at": "face crop"}),
        ("flame alone", {"method": "landmark fit"}),
        ("standin", {"images": 2}),
        ("flame alone", {"method": "landmark fit", "images": 1}),
    ],
    ids=["face crop", "landmark fit", "more photos", "more photos, landmark fit"],
)
def test_every_choice_gives_a_mesh_that_knows_its_place_in_the_photo(face, photo, model, choice):
    more = torch.cat([photo.flip(2), torch.zeros_like(photo)])  # the second shows nobody
    images = {"images": more[: choice["images"]]} if "images" in choice else {}
    mesh, _, overlay, _ = reconstruct(face, model, "as released", **choice | images)
    assert mesh.in_photo.shape == (642, 3)
    assert mesh.in_photo.isfinite().all()
    assert overlay.shape == (1, 512, 512, 3)


def test_the_landmark_fit_lies_on_the_face(face, photo):
    mesh = reconstruct(face, "flame alone", "as released", method="landmark fit", images=photo.flip(2))[0]
    width = mesh.in_photo[:, 0].amax() - mesh.in_photo[:, 0].amin()
    assert 0.8 < width / (face.box[2] - face.box[0]) < 1.8, "the egg's width by the face box's"


def test_the_dense_fit_needs_no_file_with_the_face_model_of_the_pack(face):
    mesh, _, overlay, _ = reconstruct(face, "FantasyID-nano", "shape only", method="dense fit")
    width = mesh.in_photo[:, 0].amax() - mesh.in_photo[:, 0].amin()
    assert 1 < width / (face.box[2] - face.box[0]) < 2, "the head's width by the face box's"
    assert overlay.shape == (1, 512, 512, 3)


def test_the_dense_fit_lays_a_face_model_of_another_topology_under_the_points(face):
    mesh = reconstruct(face, "flame alone", "shape only", method="dense fit")[0]
    assert mesh.in_photo.shape == (642, 3)
    width = mesh.in_photo[:, 0].amax() - mesh.in_photo[:, 0].amin()
    assert 0.8 < width / (face.box[2] - face.box[0]) < 2.5, "the egg's width by the face box's"


def test_a_method_that_there_is_not_is_named(face):
    with pytest.raises(MeshError, match=r"^FantasyID Reconstruct 3D: .*DECA, landmark fit"):
        reconstruct(face, "bare", method="telepathy")


def test_a_model_without_deca_and_flame_says_what_to_get():
    with pytest.raises(WeightsMissingError, match=r"^FantasyID Reconstruct 3D: ") as raised:
        reconstruct(model="bare")
    assert all(part in str(raised.value) for part in ("deca_model.tar", "generic_model.pkl", "flame.is.tue.mpg.de"))


def test_a_turntable_is_a_batch_of_pictures(mesh):
    [pictures] = execute(FantasyIDTurntable, mesh=mesh, frames=5, size=64).args
    assert pictures.shape == (5, 64, 64, 3)


@pytest.mark.parametrize("ending", ["glb", "obj", "ply"])
def test_a_mesh_is_saved_in_every_format(base, mesh, ending):
    [name] = execute(FantasyIDSaveMesh, mesh=mesh, filename_prefix="heads/anne", format=ending).args
    assert name.startswith("heads/anne_")
    assert name.endswith(f"_.{ending}")
    assert (base / "output" / name).stat().st_size > 10_000


def test_comfyui_s_own_nodes_take_the_mesh(base):
    mesh = reconstruct()[3]
    assert (mesh.vertices.shape, mesh.faces.shape) == ((1, 642, 3), (1, 1280, 3))
    node = importlib.import_module(save_glb_module()).SaveGLB
    node.hidden = SimpleNamespace(prompt=None, extra_pnginfo=None)
    node.execute(mesh, "host")
    assert (base / "output" / "host_00001_.glb").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["../evil", "{base}/evil", "a/../../evil", "x" * 400, "a\0b"])
def test_names_never_lead_out_of_the_output_folder(base, mesh, name):
    before = set(base.rglob("*"))
    with pytest.raises(SaveError, match=r"^FantasyID Save Mesh: "):
        execute(FantasyIDSaveMesh, mesh=mesh, filename_prefix=name.format(base=base), format="ply")
    assert not [path for path in set(base.rglob("*")) - before if path.is_file()]


def test_every_input_has_a_tooltip():
    for node in reconstruction.NODES:
        inputs = node.INPUT_TYPES()
        for name, (_, options) in (inputs["required"] | inputs.get("optional", {})).items():
            assert options.get("tooltip"), f"{node.__name__}: {name}"


def test_a_vertex_file_becomes_a_mesh_of_dots():
    names = FantasyIDLoadMesh.INPUT_TYPES()["required"]["file"][1]["options"]
    assert [name for name in names if not name.endswith("[output]")] == ["broken.ply", "people/anne.ply"]
    mesh, preview, for_comfyui = execute(FantasyIDLoadMesh, file="people/anne.ply").args
    assert (mesh.vertices.shape, preview.shape) == ((642, 3), (1, 512, 512, 3))
    assert isinstance(for_comfyui, ExecutionBlocker), "nodes that need triangles are stopped"


def test_a_damaged_vertex_file_is_named():
    with pytest.raises(MeshError, match=r"^FantasyID Load Mesh: .*broken\.ply"):
        execute(FantasyIDLoadMesh, file="broken.ply")


@pytest.mark.parametrize(
    "name",
    ["../outside.ply", "{base}/outside.ply", "people/../../outside.ply", "absent.ply", "people", "", "a\0.ply"],
)
def test_names_never_lead_out_of_the_input_folder(base, name):
    with pytest.raises(MeshError):
        execute(FantasyIDLoadMesh, file=name.format(base=base))
