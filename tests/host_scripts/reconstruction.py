"""The nodes that make a mesh, under the host: from DECA and FLAME in a model folder or from a vertex file."""

import shutil
import sys
from pathlib import Path

import host

base, standin, ply = (Path(argument) for argument in sys.argv[1:4])
host.start(base)
shutil.copytree(standin, base / "models" / "fantasyid" / "standin")
(base / "models" / "fantasyid" / "bare" / "transformer").mkdir(parents=True)
(base / "input" / "people").mkdir(parents=True)
shutil.copy(ply, base / "input" / "people" / "anne.ply")
shutil.copy(ply, base / "outside.ply")
(base / "input" / "broken.ply").write_bytes(ply.read_bytes()[:500])

import torch  # noqa: E402
from comfy_api.internal import make_locked_method_func  # noqa: E402
from pack.fantasyid_core.detection import DetectedFace  # noqa: E402
from pack.nodes.reconstruction import FantasyIDLoadMesh, FantasyIDReconstruct  # noqa: E402


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
found: dict = {"inputs": {node.__name__: node.INPUT_TYPES() for node in (FantasyIDLoadMesh, FantasyIDReconstruct)}}
found["missing_tooltips"] = [
    name
    for inputs in found.pop("inputs").values()
    for group in inputs.values()
    for name, (_, options) in group.items()
    if not options.get("tooltip")
]
for mode in ("as released", "shape only"):
    mesh, preview = execute(FantasyIDReconstruct, face=face, model_name="standin", mode=mode)
    found[mode] = [list(mesh.vertices.shape), list(mesh.faces.shape), list(mesh.shape_code.shape), list(preview.shape)]
    found[f"{mode}, seen"] = bool((preview > 0.2).float().mean() > 0.1)
found["bare"] = outcome(FantasyIDReconstruct, face=face, model_name="bare", mode="shape only")
found["files"] = list(FantasyIDLoadMesh.INPUT_TYPES()["required"]["file"][1]["options"])
mesh, preview = execute(FantasyIDLoadMesh, file="people/anne.ply")
found["loaded"] = [list(mesh.vertices.shape), list(preview.shape), FantasyIDLoadMesh.validate_inputs("people/anne.ply")]
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
found["tricks"] = [FantasyIDLoadMesh.validate_inputs(name) for name in tricks]
found["tricks_run"] = [outcome(FantasyIDLoadMesh, file=name) for name in tricks]
host.report(**found)
