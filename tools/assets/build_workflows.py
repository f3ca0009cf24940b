"""`python -m tools.assets.build_workflows`: write `workflows/*.json` and `subgraphs/*.json` (shipped_workflows.py).

The page of today says how large every node is, classic and Vue-rendered; the larger of both is saved. Run it with the
newest ComfyUI at hand (`COMFYUI_PATH`).
"""

import argparse
import copy
import json
import tempfile
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..browser import ComfyPage, find_browser, open_browser
from ..comfy_host import ComfyServer
from ..environment import ROOT
from .shipped_boxes import Blueprint, blueprints
from .shipped_workflows import Workflow, workflows
from .workflow_parts import Group, Node, Source

WORKFLOWS, SUBGRAPHS = ROOT / "workflows", ROOT / "subgraphs"
TITLE, GAP, COLUMN_GAP, PADDING, GROUP_TITLE, GROUP_GAP = 30, 28, 40, 20, 50, 10  # px
SAID, PROMPT_SAID = 96, 64  # px that some sentences under a node take, or a prompt
# Nodes that say one in every run, or why a run cannot go on.
SPEAKERS = (
    "FantasyIDDetectFace",
    "FantasyIDFaceTrack",
    "FantasyIDReconstruct",
    "FantasyIDSampler",
    "FantasyIDTakes",
    "KSampler",
    "SamplerCustomAdvanced",
)
NOTE_WIDTH, HIGHEST_NOTE = 360, 760  # px
SCALE = 0.6  # at which the file opens; below it the page draws no text in classic nodes
OFFSET = [130, 160]  # of the file at its opening, beside the side bar and below the menu
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
T5 = {
    "name": "t5xxl_fp8_e4m3fn_scaled.safetensors",
    "url": "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp8_e4m3fn_scaled.safetensors",
    "directory": "text_encoders",
}

# Nodes with their widgets, links and groups, as an artist would make them; returns their sizes by key.
_BUILD = """([nodes, groups]) => {
  app.graph.clear();
  const made = {};
  for (const [key, { type, title, widgets, size, mode, pos }] of Object.entries(nodes)) {
    const node = (made[key] = LiteGraph.createNode(type));
    if (title) node.title = title;
    app.graph.add(node);
    for (const [name, value] of Object.entries(widgets)) {
      const widget = type === "MarkdownNote" ? node.widgets[0] : node.widgets.find((each) => each.name === name);
      if (!widget) throw new Error(`${type} has no widget ${name}`);
      widget.value = value;
      widget.callback?.(value);
    }
    for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
    node.pos = pos;
    const least = node.computeSize();
    node.setSize([Math.max(size[0], least[0]), Math.max(size[1], least[1])]);
    node.mode = mode;
  }
  for (const [key, { inputs }] of Object.entries(nodes))
    for (const [name, [from, output]] of Object.entries(inputs)) {
      const source = made[from], slot = source.outputs.findIndex((each) => each.name === output);
      const place = made[key].inputs.findIndex((each) => each.name === name);
      if (slot < 0 || place < 0) throw new Error(`${from}.${output} → ${key}.${name}`);
      source.connect(slot, made[key], place);
    }
  for (const { title, color, bounding } of groups) {
    const group = new LiteGraph.LGraphGroup(title);
    group.color = color;
    group.pos = bounding.slice(0, 2);
    group.size = bounding.slice(2);
    app.graph.add(group);
  }
  return Object.fromEntries(Object.entries(made).map(([key, node]) => [key, Number(node.id)]));
}"""
# The page is slow to give a Vue-rendered node the height that it draws it with.
_SIZES = """([ids, title]) => Object.fromEntries(Object.entries(ids).map(([key, id]) => {
  const drawn = document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect();
  const [width, height] = app.graph.getNodeById(id).size, { scale } = app.canvas.ds;
  return [key, [width, Math.max(height, drawn ? drawn.height / scale - title : 0)]];
}))"""


def build(page: ComfyPage, nodes: dict[str, Node], places: dict[str, Any], groups: list[dict]) -> dict[str, int]:
    """Make the graph in the page, without links from nodes that are not among them; returns the nodes' ids by key."""
    described = {
        key: {
            **vars(node),
            "pos": places.get(key, [400 * (i % 8), 700 * (i // 8)]),
            "inputs": {name: source for name, source in node.inputs.items() if source[0] in nodes},
        }
        for i, (key, node) in enumerate(nodes.items())
    }
    return page.page.evaluate(_BUILD, [described, groups])


def measure(page: ComfyPage, nodes: dict[str, Node]) -> dict[str, list[float]]:
    """Width and height of every node as the page draws it, px."""
    return _sizes(page, build(page, nodes, {}, []))


def measure_box(page: ComfyPage, box: dict[str, Any]) -> list[float]:
    """Width and height of the only node of a workflow, a box, px."""
    page.page.evaluate("(box) => app.loadGraphData(box)", box)
    return _sizes(page, {"box": box["nodes"][0]["id"]})["box"]


def _sizes(page: ComfyPage, ids: dict[str, int]) -> dict[str, list[float]]:
    page.show_all()  # the page gives Vue-rendered nodes their size once they are in view, and not where they are tiny
    page.settle()
    return page.page.evaluate(_SIZES, [ids, TITLE])


def lay_out(workflow: Workflow, sizes: dict[str, list[float]]) -> tuple[dict, list[dict]]:
    """Upper left corners of the nodes by key, and the groups as the page takes them.

    The note, above the groups of the first column, becomes as high as the other columns leave it.
    """
    places: dict[str, list[float]] = {"note": [0, TITLE]}
    groups = []
    heights = [sum(_place_group(group, sizes, {}, 0, 0)[3] + GROUP_GAP for group in each) for each in workflow.columns]
    sizes["note"][1] = max(sizes["note"][1], min(HIGHEST_NOTE, max(heights) - heights[0] - TITLE - GROUP_GAP))
    left, right, top = 0.0, sizes["note"][0], TITLE + sizes["note"][1] + GROUP_GAP
    for column in workflow.columns:
        for group in column:
            bounding = _place_group(group, sizes, places, left, top)
            groups.append({"title": group.title, "color": group.color, "bounding": bounding})
            top += bounding[3] + GROUP_GAP
            right = max(right, left + bounding[2])
        left, top = right + GROUP_GAP, 0.0
    return places, groups


def _place_group(group: Group, sizes: dict, places: dict, left: float, top: float) -> list[float]:
    """Put the nodes of `group`, whose corner is (left, top), into `places`; returns its box: x, y, width, height."""
    x, deepest = left + PADDING, top
    for column in group.columns:
        y = top + GROUP_TITLE + TITLE
        for key in column:
            places[key] = [round(x), round(y)]
            y += sizes[key][1] + TITLE + GAP
        deepest = max(deepest, y - TITLE - GAP)
        x += max(sizes[key][0] for key in column) + COLUMN_GAP
    return [left, top, round(x - COLUMN_GAP + PADDING - left), round(deepest + PADDING - top)]


def tidy(saved: dict[str, Any], name: str) -> dict[str, Any]:
    """What every page since 1.32.9 reads, and no more."""
    for node in saved["nodes"]:
        node.pop("widgets_values_named", None)
        for part in (node, *node.get("inputs", []), *node.get("outputs", [])):
            for name in [name for name, value in part.items() if value is None and name not in ("link", "links")]:
                del part[name]
        if node["type"] == "CreateVideo":  # 0.3.75 has no bit depth
            node["inputs"] = [each for each in node["inputs"] if each["name"] != "bit_depth"]
            del node["widgets_values"][1:]
        if node["type"] == "SaveVideo":  # 0.3.75 has two plain lists where 0.33 has lists within lists
            node["inputs"] = [each for each in node["inputs"] if "." not in each["name"]]
            for each in node["inputs"]:
                if each["name"] in ("format", "codec"):
                    each["type"] = "COMBO"
            node["widgets_values"][1:] = ["auto", "auto"]
            node["outputs"] = []
        if node["type"] == "CLIPLoader":  # where it is missing, the page says so and knows where it is
            node["properties"]["models"] = [T5]
        if node["type"].startswith("FantasyID"):
            node["properties"]["cnr_id"] = "comfyui-fantasyid"
    saved["id"] = identifier(name)
    saved["extra"] = {"ds": {"scale": SCALE, "offset": OFFSET}}
    return saved


def identifier(name: str) -> str:
    """A UUID that the same name always gets."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"ComfyUI-FantasyID/{name}"))


def boxed(inside: dict[str, Any], ids: dict[str, int], blueprint: Blueprint) -> dict[str, Any]:
    """A workflow of one box that holds the graph `inside`, whose nodes have these `ids` by key."""
    subgraph = _Subgraph(inside, ids, blueprint)
    for place, (name, targets) in enumerate(blueprint.inputs.items()):
        subgraph.add_input(place, name, targets)
    for place, (name, source) in enumerate(blueprint.outputs.items()):
        subgraph.add_output(place, name, source)
    box = {
        "id": subgraph.last_node + 1,
        "type": identifier(blueprint.name),
        "pos": [100, 100],
        "size": [360, 120 + 30 * len(subgraph.box_inputs)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": subgraph.box_inputs,
        "outputs": subgraph.box_outputs,
        "title": blueprint.name,
        "properties": {"proxyWidgets": subgraph.proxy_widgets, "cnr_id": "comfyui-fantasyid"},
        "widgets_values": subgraph.widget_values,
    }
    return {
        "id": identifier(f"{blueprint.name}.json"),
        "revision": 0,
        "last_node_id": subgraph.last_node + 1,
        "last_link_id": 0,
        "nodes": [box],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph.definition()]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def put_boxes(saved: dict[str, Any], workflow: Workflow, ids: dict[str, int], places: dict, boxes: dict) -> None:
    """Add the boxes of a workflow to its file, joined with its nodes, whose `ids` by key are extended.

    Args:
        boxes: by name the workflow of one such box, of `boxed`.
    """
    of_boxes = {key: node for key, node in workflow.nodes.items() if node.type in boxes}
    for key, node in of_boxes.items():
        made = copy.deepcopy(boxes[node.type]["nodes"][0])
        ids[key] = made["id"] = saved["last_node_id"] = saved["last_node_id"] + 1
        made |= {"title": node.title or node.type, "pos": places[key], "size": list(node.size)}
        made["order"] = len(saved["nodes"])
        for place, (_, name) in enumerate(made["properties"]["proxyWidgets"]):
            made["widgets_values"][place] = node.widgets.get(name, made["widgets_values"][place])
        saved["nodes"].append(made)
    for key, node in workflow.nodes.items():
        for name, source in node.inputs.items():
            if key in of_boxes or source[0] in of_boxes:
                _join(saved, ids[source[0]], source[1], ids[key], name)
    if of_boxes:
        inside = [definition for box in boxes.values() for definition in box["definitions"]["subgraphs"]]
        saved["definitions"] = {"subgraphs": inside}


def _join(saved: dict[str, Any], start: int, output: str, end: int, name: str) -> None:
    nodes = {node["id"]: node for node in saved["nodes"]}
    source, slot = _slot(nodes[start]["outputs"], output)
    target, place = _slot(nodes[end]["inputs"], name)
    saved["last_link_id"] += 1
    target["link"] = saved["last_link_id"]
    source["links"] = [*(source.get("links") or []), target["link"]]
    saved["links"].append([target["link"], start, slot, end, place, target["type"]])


def _slot(sockets: list[dict[str, Any]], name: str) -> tuple[dict[str, Any], int]:
    return next((each, i) for i, each in enumerate(sockets) if each["name"] == name)


class _Subgraph:
    """A graph on its way into a box: sockets of the box are added one by one."""

    def __init__(self, graph: dict[str, Any], ids: dict[str, int], blueprint: Blueprint):
        self.blueprint, self.ids = blueprint, ids
        self.nodes = {node["id"]: node for node in graph["nodes"]}
        self.last_node = max(self.nodes)
        self.links = [dict(zip(LINK, link, strict=True)) for link in graph["links"]]
        self.last_link = max(link["id"] for link in self.links)
        self.inputs: list[dict] = []
        self.outputs: list[dict] = []
        self.box_inputs: list[dict] = []
        self.box_outputs: list[dict] = []
        self.proxy_widgets: list[list[str]] = []
        self.widget_values: list[Any] = []

    def add_input(self, place: int, name: str, targets: list[Source]) -> None:
        """An input of the box, joined to `targets` inside; a widget of the first is shown on the box."""
        links = []
        for key, socket in targets:
            node, slot = self._slot(key, "inputs", socket)
            kind = node["inputs"][slot]["type"]
            node["inputs"][slot]["link"] = self._link(-10, place, node["id"], slot, kind)
            links.append(self.last_link)
        label = {"label": self.blueprint.labels[name]} if name in self.blueprint.labels else {}
        self.inputs.append(self._socket(name, kind, links) | label)
        self.box_inputs.append({"name": name, "type": kind, "link": None, **label})
        node, slot = self._slot(targets[0][0], "inputs", targets[0][1])
        if "widget" in node["inputs"][slot]:
            self.box_inputs[-1]["widget"] = {"name": name}
            self.proxy_widgets.append(["-1", name])
            self.widget_values.append(_widget_value(node, targets[0][1]))

    def add_output(self, place: int, name: str, source: Source) -> None:
        """An output of the box, joined to `source` inside."""
        node, slot = self._slot(source[0], "outputs", source[1])
        kind = node["outputs"][slot]["type"]
        link = self._link(node["id"], slot, -20, place, kind)
        node["outputs"][slot]["links"] = [*(node["outputs"][slot].get("links") or []), link]
        self.outputs.append(self._socket(name, kind, [link]))
        self.box_outputs.append({"name": name, "type": kind, "links": []})

    def definition(self) -> dict[str, Any]:
        """The subgraph as a workflow file defines it."""
        nodes = list(self.nodes.values())
        right = max(node["pos"][0] + node["size"][0] for node in nodes)
        return {
            "id": identifier(self.blueprint.name),
            "version": 1,
            "state": {
                "lastGroupId": 0,
                "lastNodeId": self.last_node,
                "lastLinkId": self.last_link,
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.blueprint.name,
            "inputNode": {"id": -10, "bounding": [-220, 60, 160, 40 + 20 * len(self.inputs)]},
            "outputNode": {"id": -20, "bounding": [right + 60, 60, 160, 40 + 20 * len(self.outputs)]},
            "inputs": self.inputs,
            "outputs": self.outputs,
            "widgets": [],
            "nodes": nodes,
            "groups": [],
            "links": self.links,
            "extra": {},
            "category": self.blueprint.category,
            "description": self.blueprint.description,
        }

    def _slot(self, key: str, side: str, name: str) -> tuple[dict[str, Any], int]:
        node = self.nodes[self.ids[key]]
        return node, next(i for i, each in enumerate(node[side]) if each["name"] == name)

    def _link(self, *ends: Any) -> int:
        self.last_link += 1
        self.links.append(dict(zip(LINK, (self.last_link, *ends), strict=True)))
        return self.last_link

    def _socket(self, name: str, kind: str, links: list[int]) -> dict[str, Any]:
        return {"id": identifier(f"{self.blueprint.name}/{name}"), "name": name, "type": kind, "linkIds": links}


def _widget_value(node: dict[str, Any], name: str) -> Any:
    """The value of the widget that the input `name` belongs to; a seed has a widget of the page's own behind it."""
    values = list(node["widgets_values"])
    for each in node["inputs"]:
        if "widget" in each:
            value = values.pop(0)
            if each["name"] == name:
                return value
            if each["name"] == "seed":
                values.pop(0)
    raise ValueError(f"{node['type']} has no widget '{name}'.")


def main() -> None:
    """See `--help`."""
    parser = argparse.ArgumentParser(prog="python -m tools.assets.build_workflows", description=__doc__)
    parser.add_argument("names", nargs="*", help="only workflows and boxes whose names begin so")
    chosen = parser.parse_args().names
    wanted, alone = (
        [each for each in known if not chosen or each.name.startswith(tuple(chosen))]
        for known in (workflows(), blueprints())
    )
    for workflow in wanted:
        workflow.nodes = {"note": _note(workflow), **workflow.nodes}
    executable = find_browser()
    if executable is None:
        raise SystemExit("No Chromium, Chrome or Edge is installed: the page must say how large the nodes are.")
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(Path(folder)) as server,
        open_browser(executable) as browser,
    ):
        measured, boxes = [], {}
        for vue in (True, False):
            page = ComfyPage(browser, server.url, vue_nodes=vue)
            for each in wanted:
                boxes[each.name] = {box.name: make_box(page, box) for box in each.boxes}
            measured.append([_measured(page, each, boxes[each.name]) for each in wanted])
        tallest = _tallest(wanted, measured)
        for workflow, of_vue, of_classic in zip(wanted, *measured, strict=True):
            sizes = {key: [max(of_vue[key][i], of_classic[key][i]) for i in (0, 1)] for key in workflow.nodes}
            for key, node in workflow.nodes.items():
                sizes[key][1] = max(sizes[key][1], tallest[node.type]) + _room_to_speak(node)
            places, groups = lay_out(workflow, sizes)
            for key, node in workflow.nodes.items():
                node.size = (round(sizes[key][0]), round(sizes[key][1]))
            ids = build(page, plain(workflow), places, groups)
            saved = tidy(page.workflow(), workflow.name)
            put_boxes(saved, workflow, ids, places, boxes[workflow.name])
            text = json.dumps(saved, ensure_ascii=False)
            (WORKFLOWS / f"{workflow.name}.json").write_text(text + "\n", "utf-8")
        for blueprint in alone:
            text = json.dumps(make_box(page, blueprint), ensure_ascii=False)
            (SUBGRAPHS / f"{blueprint.name}.json").write_text(text + "\n", "utf-8")


def plain(workflow: Workflow) -> dict[str, Node]:
    """The nodes that are no boxes."""
    names = [box.name for box in workflow.boxes]
    return {key: node for key, node in workflow.nodes.items() if node.type not in names}


def make_box(page: ComfyPage, blueprint: Blueprint) -> dict[str, Any]:
    """The workflow of one box, laid out inside."""
    places: dict[str, list[float]] = {}
    _place_group(Group(blueprint.name, blueprint.columns), measure(page, blueprint.nodes), places, 0, 0)
    ids = build(page, blueprint.nodes, places, [])
    return boxed(tidy(page.workflow(), blueprint.name), ids, blueprint)


def _measured(page: ComfyPage, workflow: Workflow, boxes: dict[str, dict]) -> dict[str, list[float]]:
    """`measure` of all nodes of a workflow, boxes among them."""
    heights = {name: measure_box(page, box)[1] for name, box in boxes.items()}
    sizes = measure(page, plain(workflow))
    return sizes | {
        key: [node.size[0], heights[node.type]] for key, node in workflow.nodes.items() if node.type in boxes
    }


def _room_to_speak(node: Node) -> int:
    """px for what a node, or those in a box, say under it."""
    if node.type == "FantasyIDTextEncode":
        return PROMPT_SAID if "who" in node.inputs else 0
    return SAID if node.type in SPEAKERS or {"who", "photo"} & set(node.inputs) else 0


def _tallest(wanted: list[Workflow], measured: list[list[dict]]) -> dict[str, float]:
    """By type, the largest height of nodes that are as high as what is in them: of many, drawn small, the page leaves
    parts out.
    """
    tallest: dict[str, float] = defaultdict(float)
    for of_page in measured:
        for workflow, sizes in zip(wanted, of_page, strict=True):
            for key, node in workflow.nodes.items():
                if not node.size[1]:
                    tallest[node.type] = max(tallest[node.type], sizes[key][1])
    return tallest


def _note(workflow: Workflow) -> Node:
    return Node("MarkdownNote", "Read me", {"": workflow.note}, size=(NOTE_WIDTH, 300))


if __name__ == "__main__":
    main()
