"""What all nodes share: errors under the host's V3 machinery, names that stay in its folders; and the download node."""

import functools
import hashlib
import json
import os
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import host

base = Path(sys.argv[1])
host.start(base)
models = base / "models" / "fantasyid"
bundled = base / "pack" / "models"
folders = ("models/fantasyid/tiny/transformer", "models/fantasyid/no_model/vae", "input", "output/faces")
for folder in (*folders, "pack/models/shipped/transformer", "pack/models/tiny/transformer"):
    (base / folder).mkdir(parents=True)
for file in ("one.safetensors", "TWO.SAFETENSORS", "notes.txt", ".hidden.safetensors"):
    (models / file).touch()
(base / "secret.safetensors").touch()
for file in (
    "anne.safetensors",
    "._anne.safetensors",
    "EVE.SafeTensors",
    "HEAD.PLY",
    "deca.obj",
    "._deca.obj",
    "a.txt",
):
    (base / "input" / file).touch()
for file in ("bob.safetensors", "bob.ply"):
    (base / "output" / "faces" / file).touch()
(base / "elsewhere").mkdir()
(base / "output" / "linked").symlink_to(base / "elsewhere")  # the artist's folder on another drive
(base / "output" / "faces" / "loop").symlink_to(base / "output")

import comfy.model_management  # noqa: E402
import torch  # noqa: E402
from comfy_api.latest import io  # noqa: E402
from pack.fantasyid_core.errors import FaceNotFoundError  # noqa: E402
from pack.nodes.download import FantasyIDDownload  # noqa: E402
from pack.nodes.host import paths  # noqa: E402
from pack.nodes.host.base import FantasyIDNode  # noqa: E402

from tools.comfy_version import saves_through_links  # noqa: E402

CAUSES = {
    "own": FaceNotFoundError("no face in the photo"),
    "cancel": comfy.model_management.InterruptProcessingException(),
    "memory": torch.cuda.OutOfMemoryError("out of memory"),
    "other": ValueError("a bug"),
}


class Probe(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.String.Input("cause")]
        return io.Schema(node_id="Probe", display_name="FantasyID Probe", inputs=inputs, outputs=[io.String.Output()])

    @classmethod
    def run(cls, cause: str) -> io.NodeOutput:
        if cause in CAUSES:
            raise CAUSES[cause]
        return io.NodeOutput(f"fine with {cause}, hidden is {cls.hidden is not None}")


def run(node: type, **inputs) -> io.NodeOutput:
    """As the host's execution does: a locked clone of the class, called by its normalised name."""
    from comfy_api.internal import make_locked_method_func

    node.GET_SCHEMA()
    return make_locked_method_func(node, node.FUNCTION, node.PREPARE_CLASS_CLONE({}))(**inputs)


def execute(node: type, **inputs) -> tuple:
    return run(node, **inputs).args


def outcome(action) -> str:
    try:
        return str(action())
    except BaseException as error:  # a cancel is no Exception in newer versions
        return f"{type(error).__name__}: {error}"


found: dict = {"node": execute(Probe, cause="nothing")[0]}
found["causes"] = {name: outcome(lambda name=name: execute(Probe, cause=name)) for name in CAUSES}
found["input_types"] = list(Probe.INPUT_TYPES()["required"])

found["shipped"] = Path(paths.__file__).parents[2] / "models" == paths.BUNDLED
paths.BUNDLED = bundled
found["folders"], found["files"] = paths.model_folders(), paths.model_files()
found["resolved"] = [paths.resolve("tiny") == models / "tiny", paths.resolve("one.safetensors").is_file()]
found["bundled"] = paths.resolve("shipped") == bundled / "shipped"
found["shared parts"] = paths.beside(paths.resolve("shipped"), "face_model") == [
    bundled / "shipped" / "face_model",
    models / "face_model",
]
TRICKS = [
    "../../secret.safetensors",
    "/etc/passwd",
    "C:\\x",
    "tiny/../one.safetensors",
    "../models/shipped",
    "shipped/transformer",
    "..",
    ".",
    "",
    ".hidden.safetensors",
]
found["tricks"] = {name: outcome(lambda name=name: paths.resolve(name)) for name in TRICKS}
found["targets"] = {name: outcome(lambda name=name: paths.download_folder(name)) for name in TRICKS}
found["missing"] = outcome(lambda: paths.resolve("absent"))
paths.BUNDLED = base / "nothing"
found["without a bundled model"] = [paths.model_folders(), outcome(lambda: paths.resolve("shipped"))]
found["without nano"] = outcome(lambda: paths.resolve(paths.NANO))
(paths.BUNDLED / paths.NANO / "transformer").mkdir(parents=True)
found["half of nano"] = outcome(lambda: paths.resolve(paths.NANO))
found["identities"] = paths.identity_files()
found["identity_paths"] = [paths.identity_path(name).is_file() for name in found["identities"]]
OUTSIDE = [
    "../secret.safetensors",
    "../secret.safetensors [output]",
    "faces/../../secret.safetensors [output]",
    str(base / "secret.safetensors"),
    "absent",
    "",
]
found["identity_tricks"] = [outcome(lambda name=name: paths.identity_path(name)) for name in OUTSIDE]
found["meshes"] = paths.mesh_files()
found["mesh_paths"] = [paths.mesh_path(name).is_file() for name in found["meshes"]]
outside = [name.replace("safetensors", "ply") for name in OUTSIDE]
found["mesh_tricks"] = [outcome(lambda name=name: paths.mesh_path(name)) for name in outside]
if saves_through_links():
    linked = paths.save_path("linked/dora", ".safetensors")
    linked.touch()
    name = paths.output_name(linked) + paths.OUTPUT_MARK
    found["linked"] = [name, name in paths.identity_files(), paths.identity_path(name) == linked]
else:
    found["linked"] = outcome(lambda: paths.save_path("linked/dora", ".safetensors"))
found["saved"] = paths.save_path("faces/carol", ".safetensors").relative_to(base).as_posix()
found["save_trick"] = outcome(lambda: paths.save_path("../../carol", ".safetensors"))

commit, content = "a" * 40, b'{"block_out_channels": [8]}'
hub = base / "hub"
listing = hub / "api/models/acvlab/FantasyID/revision/main"
listing.parent.mkdir(parents=True)
git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
entry = {"rfilename": "vae/config.json", "size": len(content), "blobId": git}
listing.write_text(json.dumps({"sha": commit, "siblings": [entry]}))
served = hub / "acvlab/FantasyID/resolve" / commit / "vae/config.json"
served.parent.mkdir(parents=True)
served.write_bytes(content)
server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(hub)))
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", no_proxy="127.0.0.1")
inputs = {"repository": "acvlab/FantasyID", "revision": "main", "folder_name": "FantasyID"}
asked = run(FantasyIDDownload, **inputs, confirm=False)
found["unconfirmed"] = [asked.ui["text"][0], type(asked.args[0]).__name__, asked.args[0].message]
found["nothing_written"] = not (models / "FantasyID").exists()
found["download"] = list(execute(FantasyIDDownload, **inputs, confirm=True))
found["downloaded"] = (models / "FantasyID/vae/config.json").read_bytes() == content
comfy.model_management.interrupt_current_processing()
found["cancelled"] = outcome(lambda: execute(FantasyIDDownload, **{**inputs, "folder_name": "second"}, confirm=True))
host.report(**found)
