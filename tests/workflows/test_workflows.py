"""The shared workflows: a contract that saved files rely on, and the real page that an artist drops them on."""

import io
import json
import shutil
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest
import torch

from fantasyid_core.fusion import identity as fusion
from fantasyid_core.fusion import mesh_hierarchy
from fantasyid_core.reconstruction.mesh_files import write_ply
from tools.browser import ComfyPage
from tools.comfy_host import ComfyServer
from tools.environment import ROOT
from tools.workflow import to_graph

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
CONTRACT = ROOT / "tests" / "contract.json"
OLD = sorted((ROOT / "tests" / "fixtures" / "workflows_0.1.0").glob("*.json"))  # as artists may have saved them
OWN = {"settings": "as set here", "frames": 9, "steps": 2}
STANDIN = {**OWN, "width": 192, "height": 128}  # in place of the published model, at its size
NANO = {**OWN, "width": 160, "height": 160}  # FantasyID-nano itself
FILES = {"model_name", "file"}  # widgets that list what is on the disk
T5 = "t5xxl_fp8_e4m3fn_scaled.safetensors"  # too large to be here: an empty file, for the server's list
IDENTITY = "fantasyid/identity_00001_.safetensors"  # what the save part of the workflow writes first

each = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
each_old = pytest.mark.parametrize("file", OLD, ids=lambda file: file.stem)


@pytest.fixture(scope="module")
def stocked(comfy: ComfyServer, standin: Path, portrait: Path) -> ComfyServer:
    """The server with what the workflows name: a photo, a mesh, a saved identity."""
    shutil.copy(portrait, comfy.base / "input" / "portrait.jpg")
    mesh = mesh_hierarchy.load(standin / "face_model" / "topology.safetensors")
    write_ply(comfy.base / "input" / "face.ply", mesh.template, mesh.faces[0])
    (comfy.base / "models" / "text_encoders").mkdir(exist_ok=True)
    (comfy.base / "models" / "text_encoders" / T5).touch()
    identity = fusion.Identity(torch.randn(4, 64), torch.randn(81, 64), torch.rand(512, 512, 3))
    fusion.save_identity(identity, comfy.base / "output" / IDENTITY)
    return comfy


def frontend() -> tuple[int, ...]:
    """Version of the page."""
    return tuple(int(part) for part in version("comfyui-frontend-package").split("."))


def described(info: dict) -> dict:
    """What a saved workflow depends on: inputs in order with their types, a widget's choices, and outputs."""
    nodes = {}
    for name in sorted(name for name in info if name.startswith("FantasyID")):
        node, choices = info[name], {}
        inputs = {"required": [], "optional": []}
        for group, listed in inputs.items():
            for key in node["input_order"].get(group, []):
                kind, *options = node["input"][group][key]
                if isinstance(kind, list):
                    kind, options = "COMBO", [{"options": kind}]
                listed.append([key, kind])
                if kind == "COMBO" and key not in FILES:
                    choices[key] = options[0]["options"]
        outputs = [list(output) for output in zip(node["output"], node["output_name"], strict=True)]
        nodes[name] = {**inputs, "choices": choices, "outputs": outputs}
    return nodes


def test_saved_workflows_load_forever(comfy: ComfyServer):
    """Nodes, inputs, choices and outputs keep name, type and place. New: only behind them, and inputs only optional."""
    frozen, now = json.loads(CONTRACT.read_text("utf-8")), described(comfy.object_info())
    new = {name: node for name, node in now.items() if name not in frozen}
    assert new == {}, f"freeze the new nodes too: add them to {CONTRACT}"
    assert set(now) == set(frozen)
    for name, then in frozen.items():
        node = now[name]
        assert node["required"] == then["required"], name
        assert node["optional"][: len(then["optional"])] == then["optional"], name
        assert node["outputs"][: len(then["outputs"])] == then["outputs"], name
        for key, choices in then["choices"].items():
            assert set(choices) <= set(node["choices"][key]), f"{name}: {key}"


@each
def test_the_server_accepts_the_file_as_it_is(stocked: ComfyServer, file: Path):
    graph = to_graph(json.loads(file.read_text("utf-8")), stocked.object_info())
    prompt = stocked.queue(graph)
    stocked.interrupt()  # it would go on to the size of the real model
    stocked.wait(prompt)


@pytest.fixture(scope="module")
def page(stocked: ComfyServer, browser: "Browser") -> Iterator[ComfyPage]:
    """ComfyUI's page with classic nodes."""
    page = ComfyPage(browser, stocked.url)
    yield page
    page.close()


def widget_values(workflow: dict) -> dict[int, list]:
    return {node["id"]: node.get("widgets_values") or [] for node in workflow["nodes"]}


def named_links(workflow: dict) -> list[tuple]:
    """Links by the names of their sockets: an input that a node got later may move the places of others."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    return sorted(
        (start, nodes[start]["outputs"][output]["name"], end, nodes[end]["inputs"][place]["name"], kind)
        for _, start, output, end, place, kind in workflow["links"]
    )


def overlap(one: list[float], other: list[float]) -> bool:
    """Whether two boxes x0, y0, x1, y1 have more in common than an edge."""
    return all(min(one[i + 2], other[i + 2]) - max(one[i], other[i]) > 1 for i in (0, 1))


def untidy(boxes: dict[str, list]) -> Iterator[str]:
    """Nodes that lie on another, and nodes that lie on the edge of a group."""
    nodes, groups = boxes["nodes"], boxes["groups"]
    for i, (title, box) in enumerate(nodes):
        for other, its_box in nodes[:i]:
            if overlap(box, its_box):
                yield f"{title} lies on {other}"
        for group, (x0, y0, x1, y1) in groups:
            inside = x0 <= box[0] and y0 <= box[1] and box[2] <= x1 and box[3] <= y1
            if overlap(box, [x0, y0, x1, y1]) and not inside:
                yield f"{title} grows out of {group}"


def saved_alike(saved: dict, shown: dict) -> None:
    """Assert that the page shows a saved workflow's values and links."""
    values = widget_values(shown)
    assert {name: values[name][: len(own)] for name, own in widget_values(saved).items()} == widget_values(saved)
    assert named_links(shown) == named_links(saved)


@each
def test_dropped_on_the_page_it_makes_a_video(stocked: ComfyServer, page: ComfyPage, file: Path):
    page.drop(file)
    assert page.red() == []
    assert page.messages() == []
    saved = json.loads(file.read_text("utf-8"))
    saved_alike(saved, page.workflow())
    assert list(untidy(page.boxes())) == []
    kinds = [node["type"] for node in saved["nodes"]]
    small = STANDIN if "FantasyIDDownload" in kinds else NANO
    page.set_widgets(small)
    if "CLIPLoader" in kinds:
        page.replace("CLIPLoader", "FantasyIDLoadTextEncoder")
    if "FantasyIDLoadIdentity" in kinds:  # as its note says: save first, then load
        shutil.rmtree((stocked.base / "output" / IDENTITY).parent)
        assert stocked.wait(page.run(), timeout=300).error is None
        page.enable("FantasyIDLoadIdentity", "FantasyIDTextEncode", "FantasyIDSampler", "VAEDecode")
        page.enable("CreateVideo", "SaveVideo")
    run = stocked.wait(page.run(), timeout=300)
    assert run.error is None
    videos = [file for file in run.files if file["filename"].endswith(".mp4")]
    assert len(videos) == kinds.count("SaveVideo")
    with av.open(io.BytesIO(stocked.download(videos[0]))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    count = 25 if {"VAEEncode", "FantasyIDPerform"} & set(kinds) else small["frames"]
    own = {"FantasyIDPerform": (512, 512), "FantasyIDPasteFace": (320, 320)}  # its widget's size, and the video's
    beside = 1 + kinds.count("ImageStitch")
    width, height = next((own[kind] for kind in kinds if kind in own), (beside * small["width"], small["height"]))
    assert [frame.shape for frame in frames] == [(height, width, 3)] * count
    assert [file for file in run.files if file["type"] == "output" and file not in videos] == []
    page.look_at("SaveVideo")
    shown = page.wait_for_video(timeout=60)
    assert (shown["width"], shown["height"]) == (width, height)
    assert any(video["filename"] in shown["url"] for video in videos)


def test_a_box_with_the_identity_in_it_makes_a_video_on_the_page(stocked: ComfyServer, page: ComfyPage):
    """The shipped subgraph as an artist uses it: placed, joined with a photo and Save Video, run."""
    page.drop(ROOT / "subgraphs" / "Identity video.json")
    page.page.evaluate(
        """() => {
          const [box] = app.graph.nodes;
          const [photo, save] = ["FantasyIDExamplePhoto", "SaveVideo"].map((type) => LiteGraph.createNode(type));
          app.graph.add(photo);
          app.graph.add(save);
          photo.connect(0, box, 0);
          box.connect(0, save, 0);
        }"""
    )
    assert page.red() == []
    page.set_widgets(NANO | {"settings": "as set here"})
    run = stocked.wait(page.run(), timeout=300)
    assert run.error is None
    [video] = [file for file in run.files if file["filename"].endswith(".mp4")]
    with av.open(io.BytesIO(stocked.download(video))) as container:
        assert [frame.width for frame in container.decode(video=0)] == [NANO["width"]] * NANO["frames"]
    page.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.centerOnNode(app.graph.nodes[0]); }")
    page.wait_for_text("good.")  # what Detect Face says in the box is said under the box


@each_old
def test_workflows_of_earlier_versions_load(stocked: ComfyServer, page: ComfyPage, file: Path):
    page.drop(file)
    assert page.red() == []
    assert page.messages() == []
    saved_alike(json.loads(file.read_text("utf-8")), page.workflow())


@pytest.fixture
def vue_page(stocked: ComfyServer, browser: "Browser") -> Iterator[ComfyPage]:
    """ComfyUI's page with nodes that are parts of the page, where it is new enough to have them finished."""
    if frontend() < (1, 40):
        pytest.skip("this page's Vue-rendered nodes were an experiment")
    page = ComfyPage(browser, stocked.url, vue_nodes=True)
    yield page
    page.close()


def test_nodes_lie_beside_each_other_in_both_ways_of_drawing(vue_page: ComfyPage):
    for file in WORKFLOWS:
        vue_page.drop(file)
        vue_page.show_all()
        vue_page.settle()
        assert list(untidy(vue_page.boxes())) == [], file.name


def test_nodes_that_lie_on_each_other_are_seen(page: ComfyPage):
    """So that the tests above could fail: an earlier version's file."""
    page.drop(next(file for file in OLD if file.stem == "fantasyid_nano"))
    boxes = page.boxes()
    boxes["nodes"].append(["a node", boxes["nodes"][0][1]])
    boxes["groups"].append(["a group", [boxes["nodes"][0][1][0] + 10, *boxes["nodes"][0][1][1:]]])
    said = list(untidy(boxes))
    assert f"a node lies on {boxes['nodes'][0][0]}" in said
    assert "a node grows out of a group" in said


def test_the_page_shows_what_is_wrong_with_a_file(page: ComfyPage, tmp_path: Path):
    """So that the tests above could fail: a node that nobody has, and a link from nowhere."""
    workflow = json.loads(WORKFLOWS[0].read_text("utf-8")) | {"id": str(uuid.uuid4())}
    fuse = next(node for node in workflow["nodes"] if node["type"] == "FantasyIDFuse")
    fuse["type"] = "FantasyIDGone"
    del fuse["properties"]["cnr_id"]  # 0.33 names the pack in place of the nodes where it knows it
    link = next(link for link in workflow["links"] if link[3] != fuse["id"])
    link[1] = 999
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(workflow), "utf-8")
    page.drop(file)
    node, *links = page.red()
    assert "FantasyIDGone" in node
    assert links[0].startswith(f"link {link[0]}: 999.")
    page.wait_for_text("FantasyIDGone")
