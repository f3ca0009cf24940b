"""The shared workflows: a contract that saved files rely on, and the real page that an artist drops them on."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch

from fantasyid_core import fusion, topology
from fantasyid_core.mesh_files import write_ply
from tools.browser import ComfyPage, find_browser, open_browser
from tools.comfy_host import ComfyServer
from tools.workflow import to_graph

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
CONTRACT = ROOT / "tests" / "contract.json"
SMALL = {"width": 192, "height": 128, "frames": 9, "steps": 2}
IDENTITY = "fantasyid/identity_00001_.safetensors"  # what the save part of the workflow writes first

each = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)


@pytest.fixture(scope="module")
def stocked(comfy: ComfyServer, standin: Path, portrait: Path) -> ComfyServer:
    """The server with what the workflows name: a photo, a mesh, a saved identity."""
    shutil.copy(portrait, comfy.base / "input" / "portrait.jpg")
    mesh = topology.load(standin / "face_model" / "topology.safetensors")
    write_ply(comfy.base / "input" / "face.ply", mesh.template, mesh.faces[0])
    identity = fusion.Identity(torch.randn(4, 64), torch.randn(81, 64), torch.rand(512, 512, 3))
    fusion.save_identity(identity, comfy.base / "output" / IDENTITY)
    return comfy


def described(info: dict) -> dict:
    """What a saved workflow depends on: inputs in order with their types, and outputs."""
    nodes = {}
    for name in sorted(name for name in info if name.startswith("FantasyID")):
        node = info[name]
        inputs = [
            [key, "COMBO" if isinstance(kind := node["input"][group][key][0], list) else kind]
            for group in ("required", "optional")
            for key in node["input_order"].get(group, [])
        ]
        nodes[name] = {
            "inputs": inputs,
            "outputs": list(map(list, zip(node["output"], node["output_name"], strict=True))),
        }
    return nodes


def test_saved_workflows_load_forever(comfy):
    """Nodes and outputs stay, inputs keep name, type and place; new ones are added at the end."""
    frozen, now = json.loads(CONTRACT.read_text("utf-8")), described(comfy.object_info())
    assert set(now) == set(frozen)
    for name, node in frozen.items():
        assert now[name]["inputs"][: len(node["inputs"])] == node["inputs"], name
        assert now[name]["outputs"][: len(node["outputs"])] == node["outputs"], name


@each
def test_the_file_becomes_a_graph_for_the_api(stocked, file):
    graph = to_graph(json.loads(file.read_text("utf-8")), stocked.object_info())
    assert any(node["class_type"] == "SaveVideo" for node in graph.values())


@pytest.fixture(scope="module")
def page(stocked: ComfyServer) -> Iterator[ComfyPage]:
    """ComfyUI's page in an installed browser."""
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium, Chrome or Edge is installed")
    with open_browser(executable) as browser:
        page = ComfyPage(browser, stocked.url)
        yield page
        page.close()


def widget_values(workflow: dict) -> dict[int, list]:
    return {node["id"]: node.get("widgets_values") or [] for node in workflow["nodes"]}


@each
def test_dropped_on_the_page_it_makes_a_video(stocked, page, file):
    page.drop(file)
    assert page.red() == []
    assert page.dialogs() == []
    saved, shown = json.loads(file.read_text("utf-8")), page.workflow()
    assert widget_values(shown) == widget_values(saved)
    assert sorted(link[1:] for link in shown["links"]) == sorted(link[1:] for link in saved["links"])
    page.set_widgets(SMALL)
    if any(node["type"] == "CLIPLoader" for node in saved["nodes"]):
        page.replace("CLIPLoader", "FantasyIDLoadTextEncoder")  # T5-XXL is too large to be here
    run = stocked.wait(page.run(), timeout=300)
    assert run.error is None
    (video,) = [file for file in run.files if file["filename"].endswith(".mp4")]
    with av.open(io.BytesIO(stocked.download(video))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(128, 192, 3)] * 9
    page.look_at("SaveVideo")
    seen = page.wait_for_video(timeout=60)
    assert (seen["width"], seen["height"]) == (192, 128)
    assert video["filename"] in seen["url"]
