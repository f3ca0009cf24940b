"""Saved workflows as graphs for the server: subgraphs, bypassed and muted nodes, choices that bring widgets; and the
shipped ones against the node schemas of a newer ComfyUI than the one that runs here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import graphs
from tools.comfy_host import ComfyServer
from tools.environment import ROOT
from tools.workflow import DYNAMIC_COMBO, to_graph

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
CORE_033 = json.loads((ROOT / "tests" / "fixtures" / "object_info_0.33.0.json").read_text("utf-8"))
OPEN = {"image", "file", "lora_name", "vae_name", "clip_name", "unet_name"}  # lists of what is on the disk


def described(required: dict, output: tuple = ("IMAGE",)) -> dict:
    """A node's description as the server gives it."""
    order = {"required": list(required)}
    return {"input": {"required": required}, "input_order": order, "output": output, "display_name": "A node"}


INFO = {
    "Make": described({"size": ["INT", {"default": 8}]}),
    "Blur": described({"image": ["IMAGE"], "mask": ["MASK"], "radius": ["INT", {}]}),
    "Save": described({"image": ["IMAGE"]}),
}


def one(number: int, kind: str, *links: tuple[str, int | None, str], values: tuple = (), **more: Any) -> dict:
    """A saved node; links are (socket, link, type)."""
    inputs = [{"name": name, "link": link, "type": kind} for name, link, kind in links]
    outputs = [{"name": "image", "type": "IMAGE"}]
    return {"id": number, "type": kind, "inputs": inputs, "outputs": outputs, "widgets_values": list(values), **more}


CHAIN = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]


def chain(mode: int) -> dict:
    """Make → Blur → Save, Blur in this mode."""
    blur = one(2, "Blur", ("mask", None, "MASK"), ("image", 1, "IMAGE"), values=(3,), mode=mode)
    return {"nodes": [one(1, "Make", values=(64,)), blur, one(3, "Save", ("image", 2, "IMAGE"))], "links": CHAIN}


def test_a_bypassed_node_hands_on_its_input_of_the_same_type():
    graph = to_graph(chain(mode=4), INFO)
    assert set(graph) == {"1", "3"}
    assert graph["3"]["inputs"] == {"image": ["1", 0]}


def test_a_muted_node_gives_nothing():
    assert to_graph(chain(mode=2), INFO)["3"]["inputs"] == {}


def boxed(*, outer_link: bool) -> dict:
    """Make → [a subgraph: Blur → Blur] → Save; the first radius stands on the box, by a widget or by a link."""
    inner = [
        one(7, "Blur", ("image", 1, "IMAGE"), ("radius", 3, "INT"), values=(1,)),
        one(8, "Blur", ("image", 2, "IMAGE"), values=(2,)),
    ]
    links = [
        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 7, "target_slot": 0},
        {"id": 2, "origin_id": 7, "origin_slot": 0, "target_id": 8, "target_slot": 0},
        {"id": 3, "origin_id": -10, "origin_slot": 1, "target_id": 7, "target_slot": 1},
        {"id": 4, "origin_id": 8, "origin_slot": 0, "target_id": -20, "target_slot": 0},
    ]
    box = {"id": "box", "nodes": inner, "links": links, "inputs": [{"name": "image"}, {"name": "radius"}]}
    outer = one(2, "box", ("image", 1, "IMAGE"), ("radius", 9 if outer_link else None, "INT"), values=(5,))
    outer["inputs"][1]["widget"] = {"name": "radius"}
    nodes = [one(1, "Make", values=(64,)), outer, one(3, "Save", ("image", 2, "IMAGE")), one(4, "Make", values=(6,))]
    return {"nodes": nodes, "links": [*CHAIN, [9, 4, 0, 2, 1, "INT"]], "definitions": {"subgraphs": [box]}}


def test_a_subgraph_s_nodes_take_its_place():
    graph = to_graph(boxed(outer_link=False), INFO)
    assert set(graph) == {"1", "2:7", "2:8", "3", "4"}
    assert graph["2:7"]["inputs"] == {"image": ["1", 0], "radius": 5}
    assert graph["2:8"]["inputs"] == {"image": ["2:7", 0], "radius": 2}
    assert graph["3"]["inputs"] == {"image": ["2:8", 0]}


def test_a_link_to_a_subgraph_s_widget_wins():
    assert to_graph(boxed(outer_link=True), INFO)["2:7"]["inputs"]["radius"] == ["4", 0]


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        (["video/x", "auto", "auto"], {"format": "auto", "format.codec": "auto"}),  # by 0.3.75: codec was a node's own
        (["video/x", "mp4", "h264"], {"format": "mp4", "format.codec": "h264", "format.codec.encoding": "auto"}),
        (
            ["video/x", "mp4", "h264", "re-encode", "sRGB", 18.0],
            {
                **{"format": "mp4", "format.codec": "h264", "format.codec.encoding": "re-encode"},
                **{"format.codec.encoding.color_space": "sRGB", "format.codec.encoding.crf": 18.0},
            },
        ),
        (["video/x", "auto"], {"format": "auto", "format.codec": "auto"}),
    ],
)
def test_a_choice_brings_its_widgets(saved: list, wanted: dict):
    save = {"id": 1, "type": "SaveVideo", "widgets_values": saved}
    info = {"SaveVideo": CORE_033["SaveVideo"] | {"display_name": "Save Video"}}
    assert to_graph({"nodes": [save], "links": []}, info)["1"]["inputs"] == {"filename_prefix": "video/x"} | wanted


def complaints(graph: dict, info: dict) -> Iterator[str]:
    """What a server with these node schemas would not take."""
    for key, node in graph.items():
        if node["class_type"] not in info:
            yield f"{node['class_type']}: no such node"
            continue
        inputs = info[node["class_type"]]["input"]
        known = {**inputs.get("required", {}), **inputs.get("optional", {})}
        missing = [name for name in inputs.get("required", {}) if name not in node["inputs"]]
        yield from (f"{node['class_type']} ({key}) lacks {name}" for name in missing)
        for name, value in node["inputs"].items():
            kind, *options = known.get(name, [None])
            options = options[0] if options else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if kind == DYNAMIC_COMBO:
                choices = [choice["key"] for choice in choices]
            if choices and name not in OPEN and not isinstance(value, list) and value not in choices:
                yield f"{node['class_type']} ({key}): {name} is {value}, not one of {choices}"


@pytest.fixture(scope="module")
def info_033(comfy: ComfyServer) -> dict[str, Any]:
    """ComfyUI 0.33's own nodes as it describes them, and the pack's as they are."""
    names = {name: node | {"display_name": name} for name, node in CORE_033.items()}
    return names | {name: node for name, node in comfy.object_info().items() if name.startswith("FantasyID")}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_comfyui_033_would_take_the_shipped_workflow(info_033: dict, file: Path):
    graph = to_graph(json.loads(file.read_text("utf-8")), info_033)
    assert list(complaints(graph, info_033)) == []


@pytest.mark.parametrize("make", [graphs.released, graphs.stock, graphs.custom], ids=lambda make: make.__name__)
def test_comfyui_033_would_take_the_graphs_of_the_tests(info_033: dict, make):
    graph = {name: node for name, node in graphs.video_of(make("a photo.jpg")).items()}
    assert list(complaints(graph, info_033)) == []


def test_what_033_would_refuse_is_seen(info_033: dict):
    """So that the tests above could fail."""
    graph = graphs.video_of(graphs.stock("a photo.jpg"))
    graph["sample"]["inputs"] |= {"sampler_name": "no sampler"}
    del graph["save"]["inputs"]["format"]
    graph["gone"] = graphs.node("NoSuchNode")
    said = list(complaints(graph, info_033))
    assert [any(word in line for line in said) for word in ("no sampler", "lacks format", "no such node")] == [True] * 3


READABLE = 0.58  # scale below which the page draws no words in classic nodes
TITLE, MARGIN = 30, 10  # px that the page adds above a node and around all


def opening_scale(workflow: dict) -> float:
    """At which the template browser shows a workflow: its nodes fill three quarters of a window of 1600 × 900."""
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    width = max(x + width for x, _, width, _ in boxes) - min(x for x, *_ in boxes) + 2 * MARGIN
    height = max(y + height for _, y, _, height in boxes) - min(y for _, y, *_ in boxes) + TITLE + 2 * MARGIN
    return 0.75 * min(1600 / width, 900 / height)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_opens_large_enough_to_read(file: Path):
    assert opening_scale(json.loads(file.read_text("utf-8"))) >= READABLE


BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))


@pytest.mark.parametrize("file", BLUEPRINTS, ids=lambda file: file.stem)
def test_the_server_lists_the_box(comfy: ComfyServer, file: Path):
    listed = {each["name"]: (key, each) for key, each in comfy.global_subgraphs().items()}
    key, entry = listed[file.stem]
    assert entry["info"]["node_pack"] == "custom_nodes.ComfyUI-FantasyID"
    assert json.loads(comfy.global_subgraphs(key)["data"]) == json.loads(file.read_text("utf-8"))


def box_of(name: str) -> tuple[dict, dict]:
    """The workflow of a box, and in it the box."""
    workflow = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text("utf-8"))
    return workflow, workflow["nodes"][0]


def set_widgets(box: dict, **values: Any) -> None:
    """Set widgets on a box by name."""
    names = [each["name"] for each in box["inputs"] if "widget" in each]
    for name, value in values.items():
        box["widgets_values"][names.index(name)] = value


def joined(workflow: dict, *links: tuple[int, int, int, int, str]) -> dict:
    """`workflow` with links: from node, output, to node, input, type."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, (start, output, end, place, kind) in enumerate(links, 1):
        workflow["links"].append([number, start, output, end, place, kind])
        nodes[end]["inputs"][place]["link"] = number
    return workflow


def test_the_box_of_a_whole_video_makes_a_video(comfy: ComfyServer):
    workflow, box = box_of("Identity video")
    set_widgets(box, settings="as set here", steps=1, width=96, height=96, frames=5)
    photo = one(900, "FantasyIDExamplePhoto", values=("Ben",))
    save = one(901, "SaveVideo", ("video", None, "VIDEO"), values=("video/box", "auto", "auto"))
    workflow["nodes"] += [photo, save]
    joined(workflow, (900, 0, box["id"], 0, "IMAGE"), (box["id"], 0, 901, 0, "VIDEO"))
    run = comfy.run(to_graph(workflow, comfy.object_info()), timeout=120)
    assert run.error is None
    assert [file["filename"].startswith("box") for file in run.files] == [True]


def test_the_box_of_an_identity_gives_one(comfy: ComfyServer):
    workflow, box = box_of("Identity from photos")
    names = [each["name"] for each in box["inputs"]]
    load = one(900, "FantasyIDLoadModel", values=(graphs.NANO, "default"))
    photo = one(901, "FantasyIDExamplePhoto", values=("Ben",))
    save = one(902, "FantasyIDSaveIdentity", ("identity", None, "FANTASYID_IDENTITY"), values=("boxed/identity",))
    workflow["nodes"] += [load, photo, save]
    joined(
        workflow,
        (900, 2, box["id"], names.index("encoder"), "FANTASYID_ENCODER"),
        (901, 0, box["id"], names.index("photo"), "IMAGE"),
        (box["id"], 0, 902, 0, "FANTASYID_IDENTITY"),
    )
    run = comfy.run(to_graph(workflow, comfy.object_info()), timeout=120)
    assert run.error is None
    assert list((comfy.base / "output" / "boxed").glob("identity_*.safetensors"))
