"""What a node is to load is not there: the run fails with the pack's own fragments, which the page shows in a window.

A graph that the server refuses before it runs shows no reason on the page, and what does not hang on the refused node
runs alone and ends in "Job completed".
"""

import pytest

from tools.comfy_host import ComfyServer, Graph
from tools.graphs import changed, node, released, video_of

pytestmark = pytest.mark.usefixtures("lives_on")


def shown(mesh: dict) -> Graph:
    return {"mesh": mesh, "show": node("PreviewImage", images=["mesh", 1])}


def whole(photo: str, **inputs: dict) -> Graph:
    return changed(video_of(released(photo, steps=1, frames=1)), **inputs)


MISSING = {
    "model": (lambda photo: whole(photo, load={"model_name": "gone"}), "FantasyIDLoadModel", "'gone'", "Download"),
    "VAE": (lambda photo: whole(photo, load={"vae_name": "gone.safetensors"}), "FantasyIDLoadModel", "models/vae"),
    "text encoder": (lambda photo: whole(photo, clip={"model_name": "gone"}), "FantasyIDLoadTextEncoder", "'gone'"),
    "face model": (lambda photo: whole(photo, mesh={"model_name": "gone"}), "FantasyIDReconstruct", "'gone'"),
    "detector": (
        lambda photo: whole(photo, face={"detector": "InsightFace gone"}), "FantasyIDDetectFace", "YuNet needs no file",
    ),
    "other detector": (lambda photo: whole(photo, face={"detector": "gone"}), "FantasyIDDetectFace", "YuNet"),
    "identity": (
        lambda photo: whole(photo) | {"id": node("FantasyIDLoadIdentity", file="gone.safetensors")},
        "FantasyIDLoadIdentity", "gone.safetensors", "Save Identity",
    ),
    "mesh": (lambda photo: shown(node("FantasyIDLoadMesh", file="gone.ply")), "FantasyIDLoadMesh", "gone.ply"),
    "any mesh": (
        lambda photo: shown(node("FantasyIDLoadMesh", file="nothing is there yet")),
        "FantasyIDLoadMesh", "put the mesh",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MISSING)
def test_the_run_says_it(comfy: ComfyServer, photo: str, what: str):
    build, name, *fragments = MISSING[what]
    run = comfy.run(build(photo))
    assert run.status == "error"
    assert run.error.node_type == name
    assert [word for word in fragments if word not in run.error.message] == [], run.error.message


@pytest.mark.parametrize("name", ["FantasyIDLoadMesh", "FantasyIDLoadIdentity", "FantasyIDLoadModel"])
def test_a_list_of_files_is_never_empty(comfy: ComfyServer, name: str):
    (kind, *options), *_ = comfy.object_info(name)["input"]["required"].values()
    assert kind if isinstance(kind, list) else options[0]["options"]
