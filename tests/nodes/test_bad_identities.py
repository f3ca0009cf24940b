"""Bad identity files and a full disk: the real server names the node and the cure, and lives on."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tools.comfy_host import ComfyServer, Graph
from tools.complaints import check, complaint, good
from tools.graphs import identity, node, released, video_of

pytestmark = pytest.mark.usefixtures("lives_on")

HTML = "<!DOCTYPE html><html><body>Please log in.</body></html>"


@pytest.fixture(scope="module")
def saved(comfy: ComfyServer, photo: str) -> Path:
    """An identity file in the server's output folder."""
    save = node("FantasyIDSaveIdentity", identity=["id", 0], filename_prefix="kept/me")
    run = comfy.run(identity(photo) | {"keep": save})
    return comfy.base / "output" / run.outputs["keep"]["text"][0].removesuffix(" [output]")


def with_identity(photo: str, file: str) -> Graph:
    return good(photo) | {"id": node("FantasyIDLoadIdentity", file=file)}


def test_identity_of_another_models_width(comfy: ComfyServer, photo: str, saved: Path):
    tensors = load_file(saved) | {"face_tokens": torch.randn(36, 128), "vertex_tokens": torch.randn(79, 128)}
    save_file(tensors, saved.with_name("wide.safetensors"), {"format": "fantasyid-identity-1"})
    fragments = "width 128", "expects 64", "Run Feature Fusion again"
    check(comfy, with_identity(photo, "kept/wide.safetensors [output]"), "FantasyIDSampler", *fragments)


DAMAGED_IDENTITIES = {
    "truncated": lambda data, path: path.write_bytes(data[: len(data) // 2]),
    "web page": lambda data, path: path.write_text(HTML),
    "empty": lambda data, path: path.write_bytes(b""),
    "not finite": lambda data, path: rewrite(path, face_tokens=torch.full((4, 64), torch.nan)),
    "no tokens": lambda data, path: rewrite(path, face_tokens=torch.zeros(0, 64), vertex_tokens=torch.zeros(0, 64)),
    "no image": lambda data, path: rewrite(path, image=torch.zeros(0, 512, 3)),
    "without a tensor": lambda data, path: rewrite(path, image=None),
}


def rewrite(path: Path, **tensors: torch.Tensor | None) -> None:
    saved_tensors = {name: tensor for name, tensor in (load_file(path) | tensors).items() if tensor is not None}
    save_file(saved_tensors, path, {"format": "fantasyid-identity-1"})


@pytest.mark.parametrize("damage", DAMAGED_IDENTITIES)
def test_damaged_identity(comfy: ComfyServer, photo: str, saved: Path, damage: str):
    path = Path(shutil.copy(saved, saved.with_name("damaged.safetensors")))
    DAMAGED_IDENTITIES[damage](saved.read_bytes(), path)
    graph = with_identity(photo, "kept/damaged.safetensors [output]")
    found = complaint(comfy, graph)
    assert found.node == "FantasyIDLoadIdentity"
    assert "damaged.safetensors" in found.message
    assert "again" in found.message


def test_file_that_is_no_identity(comfy: ComfyServer, photo: str, saved: Path):
    save_file(load_file(saved), saved.with_name("other.safetensors"))
    fragments = "other.safetensors", "not a FantasyID identity"
    check(comfy, with_identity(photo, "kept/other.safetensors [output]"), "FantasyIDLoadIdentity", *fragments)


@pytest.mark.parametrize(
    "file", ["../models/fantasyid/FantasyID/vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "../../x [output]"]
)
def test_identity_path_that_leads_elsewhere(comfy: ComfyServer, photo: str, file: str):
    check(comfy, with_identity(photo, file), "FantasyIDLoadIdentity", "lies outside of", "put the identity there")


@pytest.mark.parametrize("prefix", ["../../out", "/tmp/out", "a/../../../out"])
def test_saving_out_of_the_output_folder(comfy: ComfyServer, photo: str, prefix: str):
    graph = identity(photo) | {"keep": node("FantasyIDSaveIdentity", identity=["id", 0], filename_prefix=prefix)}
    check(comfy, graph, "FantasyIDSaveIdentity", prefix, "must stay in the output folder")


@pytest.mark.parametrize("prefix", ["x" * 300, "a\0b"])
def test_saving_under_an_impossible_name(comfy: ComfyServer, photo: str, prefix: str):
    graph = identity(photo) | {"keep": node("FantasyIDSaveIdentity", identity=["id", 0], filename_prefix=prefix)}
    check(comfy, graph, "FantasyIDSaveIdentity", "could not be saved", "choose another")


@pytest.fixture
def full(comfy: ComfyServer) -> Iterator[str]:
    """Name of an output folder where 16 KiB can be written: a small disk, or a limit on the server's files."""
    if sys.platform != "linux":
        pytest.skip("a disk can be made to be full on Linux only")
    folder = comfy.base / "output" / "full"
    folder.mkdir(exist_ok=True)
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted and mounted.returncode == 0:
        yield folder.name
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    import resource

    limits = resource.prlimit(comfy.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(comfy.process.pid, resource.RLIMIT_FSIZE, (1 << 14, limits[1]))
    yield folder.name
    resource.prlimit(comfy.process.pid, resource.RLIMIT_FSIZE, limits)


def test_full_disk_while_saving_an_identity(comfy: ComfyServer, photo: str, full: str):
    graph = identity(photo) | {"keep": node("FantasyIDSaveIdentity", identity=["id", 0], filename_prefix=f"{full}/me")}
    check(comfy, graph, "FantasyIDSaveIdentity", f"{full}/me", "os error", "Free some disk space")
    assert list((comfy.base / "output" / full).iterdir()) == []  # no half a file is left


def test_full_disk_while_saving_a_video(comfy: ComfyServer, photo: str, full: str):
    """Saved by the host's own node, which says the path and the system's reason."""
    graph = video_of(released(photo, steps=1, frames=25), f"{full}/video")
    found = complaint(comfy, graph)
    assert found.node == "SaveVideo"
    assert "No space left on device" in found.message or "File too large" in found.message
    assert f"{full}/video" in found.message


def test_after_all_this_a_whole_video_is_made(comfy: ComfyServer, photo: str):
    run = comfy.run(video_of(released(photo, steps=4, frames=25, seed=12345), "full/video"))
    assert run.status == "success", run.error
    assert len(comfy.download(run.files[0])) > 1000
