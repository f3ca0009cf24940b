"""A mesh of another program through the real server: the identity is that of the right mesh, and the page is told."""

import torch
from safetensors.torch import load_file

from fantasyid_core.reconstruction.mesh_files import read_mesh, write_obj
from tools.comfy_host import ComfyServer
from tools.graphs import node, released


def test_a_mesh_in_millimetres_makes_the_same_identity(comfy: ComfyServer, photo: str):
    needed = ("load", "photo", "face", "views", "mesh", "id")
    graph = {name: part for name, part in released(photo).items() if name in needed}
    for part in ("one", "two"):
        keep = node("FantasyIDSaveIdentity", identity=["id", 0], filename_prefix=f"units/{part}")
        save = node("FantasyIDSaveMesh", mesh=["mesh", 0], filename_prefix=f"units/{part}", format="obj")
        run = comfy.run(graph | {"keep": keep, "save": save})
        assert run.status == "success", run.error
        folder = comfy.base / "output" / "units"
        vertices, faces = read_mesh(next(folder.glob(f"{part}_*.obj")))
        write_obj(folder / "HEAD.OBJ", vertices * 1000, faces)
        graph["mesh"] = node("FantasyIDLoadMesh", file="units/HEAD.OBJ [output]")
    one, two = (load_file(next(folder.glob(f"{part}_*.safetensors"))) for part in ("one", "two"))
    torch.testing.assert_close(two["vertex_tokens"], one["vertex_tokens"], atol=1e-4, rtol=1e-4)
    assert "it is in millimetres" in comfy.log.read_text("utf-8")
