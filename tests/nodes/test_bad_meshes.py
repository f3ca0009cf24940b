"""Hostile mesh files, pickles and names: the real server names the node and the cause, and lives on."""

import os
import pickle
import shutil
from pathlib import Path

import pytest

from tools.comfy_host import ComfyServer, Graph
from tools.complaints import check

HEADER = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
FACE = "element face 1\nproperty list uchar int vertex_indices\n"
TRIANGLE = HEADER.format(3) + FACE + "end_header\n0 0 0\n1 0 0\n0 1 0\n"
MESHES = {
    "huge count": (HEADER.format(10**15) + "end_header\n0 0 0\n", "more rows"),
    "NaN vertices": (HEADER.format(1) + "end_header\nnan 0 0\n", "not finite"),
    "negative index": (TRIANGLE + "3 0 1 -2\n", "from -2 to 1"),
    "no mesh": ("GIF89a", "not a readable .ply file"),
}


class Opens:
    """Unpickled by Python itself, this would leave a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def shown(mesh: dict, output: int = 1) -> Graph:
    return {"mesh": mesh, "show": {"class_type": "PreviewImage", "inputs": {"images": ["mesh", output]}}}


def loaded(name: str) -> Graph:
    return shown({"class_type": "FantasyIDLoadMesh", "inputs": {"file": name}})


def reconstructed(photo: str, model: str) -> Graph:
    face = {"image": ["photo", 0], "select": "largest", "index": 0, "min_score": 0.6}
    inputs = {"face": ["face", 0], "model_name": model, "mode": "as released", "method": "landmark fit"}
    return {
        "photo": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "face": {"class_type": "FantasyIDDetectFace", "inputs": face},
        **shown({"class_type": "FantasyIDReconstruct", "inputs": inputs}),
    }


@pytest.mark.usefixtures("lives_on")
def test_hostile_mesh_files_pickles_and_names(comfy: ComfyServer, photo: str, tmp_path: Path):
    for name, (content, fragments) in MESHES.items():
        (comfy.base / "input" / f"{name}.ply").write_text(content)
        check(comfy, loaded(f"{name}.ply"), "FantasyIDLoadMesh", f"{name}.ply", fragments)
    for name in ("../../etc/passwd", "/etc/passwd", "../models/fantasyid/x.ply"):
        check(comfy, loaded(name), "FantasyIDLoadMesh", "put the mesh there")

    model = comfy.base / "models" / "fantasyid" / "hostile"
    (model / "transformer").mkdir(parents=True)
    (model / "face_model").mkdir()
    trap = tmp_path / "trap"
    (model / "face_model" / "generic_model.pkl").write_bytes(pickle.dumps({"f": Opens(trap)}))
    check(comfy, reconstructed(photo, "hostile"), "FantasyIDReconstruct", "was refused", "Nothing of it was executed")
    assert not trap.exists()
    shutil.rmtree(model)

    (comfy.base / "input" / "good.ply").write_text(TRIANGLE + "3 0 1 2\n")
    for prefix in ("../outside", str(tmp_path / "outside")):
        graph = loaded("good.ply")
        inputs = {"mesh": ["mesh", 0], "filename_prefix": prefix, "format": "glb"}
        graph["save"] = {"class_type": "FantasyIDSaveMesh", "inputs": inputs}
        check(comfy, graph, "FantasyIDSaveMesh", "must stay in the output folder")
    assert not list(comfy.base.rglob("outside*")) + list(tmp_path.glob("outside*"))


def test_the_landmark_fit_needs_no_deca_and_its_mesh_reaches_the_host_s_own_nodes(comfy: ComfyServer, photo: str):
    """Photo → mesh by FLAME's stand-in alone → the pack's file, Preview 3D of it, and the host's SaveGLB."""
    models = comfy.base / "models" / "fantasyid"
    (models / "no DECA" / "transformer").mkdir(parents=True)
    shutil.copytree(models / "FantasyID" / "face_model", models / "no DECA" / "face_model")
    (models / "no DECA" / "face_model" / "deca_model.safetensors").unlink()
    graph = reconstructed(photo, "no DECA")
    save = {"mesh": ["mesh", 0], "filename_prefix": "heads/one", "format": "glb"}
    graph["save"] = {"class_type": "FantasyIDSaveMesh", "inputs": save}
    graph["look"] = {"class_type": "Preview3D", "inputs": {"model_file": ["save", 0]}}
    graph["host"] = {"class_type": "SaveGLB", "inputs": {"mesh": ["mesh", 3], "filename_prefix": "heads/host"}}
    run = comfy.run(graph)
    assert run.status == "success", run.error
    assert {path.name for path in (comfy.base / "output" / "heads").iterdir()} >= {
        "one_00001_.glb",
        "host_00001_.glb",
    }
    shutil.rmtree(models / "no DECA")
