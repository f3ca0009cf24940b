"""The nodes that make a mesh, under the host: from DECA and FLAME in a model folder or from a vertex file."""

import importlib
import shutil
import sys
from pathlib import Path

import host

base, standin, ply, portrait = (Path(argument) for argument in sys.argv[1:5])
host.start(base)
shutil.copytree(standin, base / "models" / "fantasyid" / "standin")
(base / "models" / "fantasyid" / "bare" / "transformer").mkdir(parents=True)
(base / "input" / "people").mkdir(parents=True)
shutil.copy(ply, base / "input" / "people" / "anne.ply")
shutil.copy(ply, base / "outside.ply")
(base / "input" / "broken.ply").write_bytes(ply.read_bytes()[:500])

import comfy.model_management  # noqa: E402
import torch  # noqa: E402
from comfy_api.internal import make_locked_method_func  # noqa: E402
from comfy_execution.graph_utils import ExecutionBlocker  # noqa: E402
from pack.fantasyid_core.detection.faces import DetectedFace  # noqa: E402
from pack.fantasyid_core.images import load_photo  # noqa: E402
from pack.nodes import reconstruction  # noqa: E402
from pack.nodes.detection import FantasyIDDetectFace  # noqa: E402
from pack.nodes.host import resident  # noqa: E402
from pack.nodes.reconstruction import (  # noqa: E402
    FantasyIDLoadMesh,
    FantasyIDReconstruct,
    FantasyIDSaveMesh,
    FantasyIDTurntable,
)
from pack.tools.comfy_version import save_glb_module  # noqa: E402

SaveGLB = importlib.import_module(save_glb_module()).SaveGLB


def execute(node: type, **inputs):
    node.GET_SCHEMA()
    return make_locked_method_func(node, node.FUNCTION, node.PREPARE_CLASS_CLONE({}))(**inputs).args


def outcome(node: type, **inputs) -> str:
    try:
        return str(execute(node, **inputs))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


nothing = torch.zeros(1)
face = DetectedFace(torch.rand(200, 300, 3), nothing, nothing, 1.0, nothing, nothing)
found: dict = {"inputs": {node.__name__: node.INPUT_TYPES() for node in reconstruction.NODES}}
found["missing_tooltips"] = [
    name
    for inputs in found.pop("inputs").values()
    for group in (inputs["required"], inputs.get("optional", {}))
    for name, (_, options) in group.items()
    if not options.get("tooltip")
]
for mode in ("as released", "shape only"):
    mesh, preview, overlay, host_mesh = execute(FantasyIDReconstruct, face=face, model_name="standin", mode=mode)
    found[mode] = [list(x.shape) for x in (mesh.vertices, mesh.faces, mesh.shape_code, preview, overlay)]
    found[f"{mode}, seen"] = bool((preview > 0.2).float().mean() > 0.1)
regressor, flame = (patcher for _, patcher in resident._held.values())
held = comfy.model_management.loaded_models()
found["comfyui holds deca and flame"] = [regressor in held, flame in held]
execute(FantasyIDReconstruct, face=face, model_name="standin", mode="shape only")
found["read once"] = [patcher for _, patcher in resident._held.values()] == [regressor, flame]
(base / "models" / "fantasyid" / "standin" / "face_model" / "generic_model.safetensors").touch()
execute(FantasyIDReconstruct, face=face, model_name="standin", mode="shape only")
patchers = [patcher for _, patcher in resident._held.values()]
found["a changed file is read anew"] = [patchers[0] is regressor, patchers[1] is flame]
comfy.model_management.unload_all_models()
again = execute(FantasyIDReconstruct, face=face, model_name="standin", mode="shape only")[0]
found["after unloading"] = torch.equal(again.vertices, mesh.vertices)
found["bare"] = outcome(FantasyIDReconstruct, face=face, model_name="bare", mode="shape only")
found["files"] = list(FantasyIDLoadMesh.INPUT_TYPES()["required"]["file"][1]["options"])
photo = load_photo(portrait)[None]
seen = execute(FantasyIDDetectFace, image=photo, select="largest", index=0, min_score=0.6)[0]
bare = base / "models" / "fantasyid" / "bare" / "face_model"
bare.mkdir()
shutil.copy(standin / "face_model" / "generic_model.safetensors", bare)
nobody = torch.zeros_like(photo)
for name, choice in {
    "face crop": {"model_name": "standin", "look_at": "face crop"},
    "landmark fit": {"model_name": "bare", "method": "landmark fit"},
    "more photos": {"model_name": "standin", "images": torch.cat([photo.flip(2), nobody])},
    "more photos, landmark fit": {"model_name": "bare", "method": "landmark fit", "images": photo.flip(2)},
}.items():
    mesh, _, overlay, _ = execute(FantasyIDReconstruct, face=seen, mode="as released", **choice)
    found[name] = [list(mesh.in_photo.shape), list(overlay.shape), bool(mesh.in_photo.isfinite().all())]
wide = float((mesh.in_photo[:, 0].amax() - mesh.in_photo[:, 0].amin()) / (seen.box[2] - seen.box[0]))
found["as wide as the face"] = wide
found["no such method"] = outcome(
    FantasyIDReconstruct, face=seen, model_name="bare", mode="as released", method="telepathy"
)
found["turntable"] = list(execute(FantasyIDTurntable, mesh=mesh, frames=5, size=64)[0].shape)
output = base / "output"
for ending in ("glb", "obj", "ply"):
    name = execute(FantasyIDSaveMesh, mesh=mesh, filename_prefix="heads/anne", format=ending)[0]
    found[ending] = [name, (output / name).stat().st_size > 10_000]
found["host_mesh"] = [list(host_mesh.vertices.shape), list(host_mesh.faces.shape)]
before = set(base.rglob("*"))
save_tricks = ("../evil", str(base / "evil"), "a/../../evil", "x" * 400, "a\0b")
found["save_tricks"] = [
    outcome(FantasyIDSaveMesh, mesh=mesh, filename_prefix=name, format="ply") for name in save_tricks
]
found["written"] = [path.name for path in set(base.rglob("*")) - before if path.is_file()]
host.save_glb().execute(host_mesh, "host")
found["host_saved"] = (output / "host_00001_.glb").stat().st_size > 10_000
mesh, preview, blocked = execute(FantasyIDLoadMesh, file="people/anne.ply")
found["blocked"] = isinstance(blocked, ExecutionBlocker)
found["loaded"] = [list(mesh.vertices.shape), list(preview.shape)]
found["broken"] = outcome(FantasyIDLoadMesh, file="broken.ply")
tricks = (
    "../outside.ply",
    str(base / "outside.ply"),
    "people/../../outside.ply",
    "absent.ply",
    "people",
    "",
    "a\0.ply",
)
found["tricks"] = [outcome(FantasyIDLoadMesh, file=name) for name in tricks]
host.report(**found)
