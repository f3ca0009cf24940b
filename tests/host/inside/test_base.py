"""What all nodes share: errors under ComfyUI's V3 machinery, names that stay in its folders; and the download node."""

import functools
import hashlib
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import comfy.model_management
import pytest
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from pack.fantasyid_core.errors import (
    FaceNotFoundError,
    FantasyIDError,
    IdentityError,
    MeshError,
    SaveError,
    WeightsMissingError,
)
from pack.nodes.download import FantasyIDDownload
from pack.nodes.host import paths
from pack.nodes.host.base import FantasyIDNode
from pack.tests.support.in_comfyui import execute

from tools.comfy_version import saves_through_links

CAUSES = {
    "own": FaceNotFoundError("no face in the photo"),
    "cancel": comfy.model_management.InterruptProcessingException(),
    "memory": torch.cuda.OutOfMemoryError("out of memory"),
    "other": ValueError("a bug"),
}
TRICKS = [
    *("../../secret.safetensors", "/etc/passwd", "C:\\x", "tiny/../one.safetensors", "../models/shipped"),
    *("shipped/transformer", "..", ".", "", ".hidden.safetensors"),
]
OUTSIDE = [
    *("../secret.{kind}", "../secret.{kind} [output]", "faces/../../secret.{kind} [output]", "{base}/secret.{kind}"),
    *("absent", ""),
]


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


@pytest.fixture(scope="module")
def models(base) -> Path:
    """The artist's folder of models; in ComfyUI's other folders lie what should be listed, and what should not."""
    models = base / "models" / "fantasyid"
    for folder in ("tiny/transformer", "no_model/vae"):
        (models / folder).mkdir(parents=True)
    for file in ("one.safetensors", "TWO.SAFETENSORS", "notes.txt", ".hidden.safetensors"):
        (models / file).touch()
    for folder in ("input", "output/faces", "elsewhere"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for file in ("anne.safetensors", "._anne.safetensors", "EVE.SafeTensors"):
        (base / "input" / file).touch()
    for file in ("HEAD.PLY", "deca.obj", "._deca.obj", "a.txt"):
        (base / "input" / file).touch()
    for file in ("output/faces/bob.safetensors", "output/faces/bob.ply", "secret.safetensors", "secret.ply"):
        (base / file).touch()
    (base / "output" / "linked").symlink_to(base / "elsewhere")  # the artist's folder on another drive
    (base / "output" / "faces" / "loop").symlink_to(base / "output")
    return models


@pytest.fixture
def bundled(models, tmp_path, monkeypatch) -> Path:
    """The pack's folder of models, with one of its own and one of the same name as the artist's."""
    for folder in ("shipped/transformer", "tiny/transformer"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(paths, "BUNDLED", tmp_path)
    return tmp_path


def test_a_node_runs_as_comfyui_runs_it():
    assert execute(Probe, cause="nothing").args == ("fine with nothing, hidden is True",)
    assert list(Probe.INPUT_TYPES()["required"]) == ["cause"]


@pytest.mark.parametrize("cause", CAUSES)
def test_a_node_s_own_errors_carry_its_name_and_all_others_pass_untouched(cause):
    with pytest.raises(type(CAUSES[cause])) as raised:
        execute(Probe, cause=cause)
    if cause == "own":
        assert str(raised.value) == "FantasyID Probe: no face in the photo"
    else:
        assert raised.value is CAUSES[cause]


def test_models_are_listed_and_found(models, bundled):
    assert (paths.model_folders(), paths.model_files()) == (["shipped", "tiny"], ["TWO.SAFETENSORS", "one.safetensors"])
    assert paths.resolve("one.safetensors").is_file()


def test_the_model_inside_the_pack_is_found_behind_the_artist_s_own(models, bundled, tmp_path, monkeypatch):
    assert paths.resolve("shipped") == bundled / "shipped"
    assert paths.resolve("tiny") == models / "tiny", "an own model of the same name wins"
    assert paths.beside(bundled / "shipped", "face_model") == [bundled / "shipped/face_model", models / "face_model"]
    monkeypatch.setattr(paths, "BUNDLED", tmp_path / "nothing")
    assert paths.model_folders() == ["tiny"]
    with pytest.raises(WeightsMissingError, match=r"^Run 'FantasyID Download Model' first.*'shipped' is not there"):
        paths.resolve("shipped")


def test_the_pack_s_models_lie_at_its_root():
    assert Path(paths.__file__).parents[2] / "models" == paths.BUNDLED


@pytest.mark.parametrize("name", TRICKS)
def test_no_model_s_name_leads_out_of_its_folder(bundled, name):
    with pytest.raises(WeightsMissingError, match="is not a model's name"):
        paths.resolve(name)
    with pytest.raises(FantasyIDError, match="cannot be a folder's name"):
        paths.download_folder(name)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_file_s_name_leads_out_of_input_and_output(base, models, name):
    for kind, find, error in (("safetensors", paths.identity_path, IdentityError), ("ply", paths.mesh_path, MeshError)):
        with pytest.raises(error):
            find(name.format(kind=kind, base=base))


def test_nothing_is_saved_outside_of_output(models):
    with pytest.raises(SaveError):
        paths.save_path("../../carol", ".safetensors")


def test_a_missing_model_is_named_with_its_path_and_its_source(models):
    with pytest.raises(WeightsMissingError) as raised:
        paths.resolve("absent")
    said = str(raised.value).replace("\\", "/")
    for part in ("models/fantasyid/absent", "acvlab/FantasyID", "amap_cvlab/FantasyID", "FantasyID Download Model"):
        assert part in said


def test_identities_are_listed_found_and_saved_in_comfyui_s_folders(base, models):
    names = paths.identity_files()
    assert names == ["EVE.SafeTensors", "anne.safetensors", "faces/bob.safetensors [output]"]
    assert all(paths.identity_path(name).is_file() for name in names)
    saved = paths.save_path("faces/carol", ".safetensors")
    assert saved == base / "output" / "faces" / "carol_00001_.safetensors"


def test_meshes_are_listed_in_whatever_case_and_found(models):
    assert paths.mesh_files() == ["HEAD.PLY", "deca.obj", "faces/bob.ply [output]"]
    assert all(paths.mesh_path(name).is_file() for name in paths.mesh_files())


def test_what_is_saved_through_a_linked_folder_is_listed_and_loads(models):
    if not saves_through_links():
        with pytest.raises(SaveError, match="Cannot save as 'linked/dora'"):
            paths.save_path("linked/dora", ".safetensors")
        return
    linked = paths.save_path("linked/dora", ".safetensors")
    linked.touch()
    name = paths.output_name(linked) + paths.OUTPUT_MARK
    assert name == "linked/dora_00001_.safetensors [output]"
    assert name in paths.identity_files()
    assert paths.identity_path(name) == linked
    linked.unlink()


@pytest.mark.parametrize("state", ["without nano", "half of nano"])
def test_the_model_that_comes_with_the_pack_is_no_download(bundled, state):
    if state == "half of nano":
        (bundled / paths.NANO / "transformer").mkdir(parents=True)
    with pytest.raises(WeightsMissingError) as raised:
        paths.resolve(paths.NANO)
    assert str(raised.value).startswith("Reinstall the pack")
    assert "git checkout -- models/FantasyID-nano" in str(raised.value)
    assert "acvlab" not in str(raised.value)


CONTENT = b'{"block_out_channels": [8]}'
DOWNLOAD = {"repository": "acvlab/FantasyID", "revision": "main", "folder_name": "FantasyID"}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> None:
    """A server like Hugging Face's, with one file of the model."""
    commit = "a" * 40
    listing = tmp_path / "api/models/acvlab/FantasyID/revision/main"
    served = tmp_path / "acvlab/FantasyID/resolve" / commit / "vae/config.json"
    listing.parent.mkdir(parents=True)
    served.parent.mkdir(parents=True)
    served.write_bytes(CONTENT)
    git = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    entry = {"rfilename": "vae/config.json", "size": len(CONTENT), "blobId": git}
    listing.write_text(json.dumps({"sha": commit, "siblings": [entry]}))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield
        server.shutdown()


def test_the_download_node_needs_consent_shows_the_size_and_can_be_cancelled(hub, models):
    unconfirmed = execute(FantasyIDDownload, **DOWNLOAD, confirm=False)
    assert unconfirmed.ui["text"][0].startswith("Nothing was downloaded yet. It would be 1 files, 0.00 GB")
    assert "tick 'confirm'" in unconfirmed.ui["text"][0]
    [output] = unconfirmed.args
    assert isinstance(output, ExecutionBlocker)
    assert output.message is None, "nothing red: what hangs on it waits without a word"
    assert not (models / "FantasyID").exists()

    assert execute(FantasyIDDownload, **DOWNLOAD, confirm=True).args == ("FantasyID",)
    assert (models / "FantasyID/vae/config.json").read_bytes() == CONTENT

    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        execute(FantasyIDDownload, **DOWNLOAD | {"folder_name": "second"}, confirm=True)
