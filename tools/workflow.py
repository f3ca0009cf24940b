"""Turn a workflow as the interface saves it (nodes, links, widgets_values) into a graph for the server's API."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings further widgets, named CHOICE.WIDGET in the API
NOTES = {"Note", "MarkdownNote"}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}
MUTED, BYPASSED = 2, 4
INSIDE, OUTSIDE = "-10", "-20"  # a subgraph's own ids for what comes in and what goes out

Slot = tuple[str, int]  # node, output


def to_graph(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """API graph of `workflow`: node id → class_type, inputs, `_meta.title`.

    Notes and muted nodes are left out; links through Reroute are followed, and through a bypassed node to its input of
    the same type. A subgraph's nodes take its place, as ids OUTER:INNER. Optional widgets that a node got after the
    file was saved are left to the node.

    Args:
        workflow: a `workflows/*.json` file.
        object_info: the server's description of all nodes.

    Raises:
        ValueError: a node is unknown to the server, or lacks a value that is required.
    """
    flat = _Flat({one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])})
    flat.add(workflow["nodes"], workflow["links"])
    graph = {}
    for key, node in flat.nodes.items():
        if node["type"] in NOTES | {"Reroute"} or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        name = f"{node['type']} (node {key})"
        if node["type"] not in object_info:
            raise ValueError(f"{name} is unknown to this ComfyUI: update the pack and ComfyUI, or replace the node.")
        info = object_info[node["type"]]
        inputs = widget_values(node.get("widgets_values") or [], info, name)
        for socket, slot in flat.links[key].items():
            source = flat.source(slot)
            if isinstance(source, _Value):
                inputs[socket] = source.value
            elif source is not None:
                inputs[socket] = list(source)
        title = node.get("title") or info["display_name"]
        graph[key] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return graph


@dataclass(frozen=True)
class _Value:
    """What a subgraph's node has on a widget that stands for one inside."""

    value: Any


@dataclass
class _Flat:
    """A workflow's nodes without the boxes that subgraphs are.

    Attributes:
        subgraphs: their definitions by id.
        nodes: by key, OUTER:INNER within subgraphs.
        links: of each node, socket → where its link begins.
        aliases: a slot on a subgraph's border → what stands behind it.
    """

    subgraphs: Mapping[str, dict[str, Any]]
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: dict[str, dict[str, Slot]] = field(default_factory=dict)
    aliases: dict[Slot, "Slot | _Value"] = field(default_factory=dict)

    def add(self, nodes: list[dict[str, Any]], links: list[Any], prefix: str = "") -> None:
        """Nodes and links of one level; a link is a list, or within subgraphs an object."""
        starts = {}
        for link in links:
            number, origin, slot = (
                (link["id"], link["origin_id"], link["origin_slot"]) if isinstance(link, dict) else link[:3]
            )
            starts[number] = (f"{prefix}{origin}", slot)
        for node in nodes:
            key = f"{prefix}{node['id']}"
            definition = self.subgraphs.get(node["type"])
            if definition is None or node.get("mode", 0):
                self.nodes[key] = node
                sockets = [socket for socket in node.get("inputs", []) if socket.get("link") is not None]
                self.links[key] = {socket["name"]: starts[socket["link"]] for socket in sockets}
            else:
                self._open(key, node, definition, starts)

    def _open(self, key: str, node: dict[str, Any], definition: dict[str, Any], starts: Mapping[int, Slot]) -> None:
        """Put a subgraph's nodes in the place of its box."""
        places = {socket["name"]: place for place, socket in enumerate(definition.get("inputs", []))}
        values = iter(node.get("widgets_values") or [])
        for socket in node.get("inputs", []):
            value = next(values, None) if "widget" in socket else None
            border = (f"{key}:{INSIDE}", places.get(socket["name"], -1))
            if socket.get("link") is not None:
                self.aliases[border] = starts[socket["link"]]
            elif value is not None:
                self.aliases[border] = _Value(value)
        for link in definition["links"]:
            if str(link["target_id"]) == OUTSIDE:
                self.aliases[key, link["target_slot"]] = (f"{key}:{link['origin_id']}", link["origin_slot"])
        self.add(definition["nodes"], definition["links"], f"{key}:")

    def source(self, slot: Slot) -> "Slot | _Value | None":
        """The output or value that a link really begins at; None where it begins nowhere."""
        while True:
            if slot in self.aliases:
                slot = self.aliases[slot]
                if isinstance(slot, _Value):
                    return slot
                continue
            node = self.nodes.get(slot[0])
            if node is None or node.get("mode", 0) == MUTED:
                return None
            if node["type"] == "Reroute":
                passed = next(iter(self.links[slot[0]].values()), None)
            elif node.get("mode", 0) == BYPASSED:
                passed = self._through(node, slot)
            else:
                return slot
            if passed is None:
                return None
            slot = passed

    def _through(self, node: dict[str, Any], slot: Slot) -> Slot | None:
        """What a bypassed node hands on at an output: its first linked input of the same type."""
        kind = node["outputs"][slot[1]]["type"]
        names = [socket["name"] for socket in node.get("inputs", []) if socket["type"] == kind]
        return next((self.links[slot[0]][name] for name in names if name in self.links[slot[0]]), None)


def widget_values(values: list[Any], info: dict[str, Any], name: str) -> dict[str, Any]:
    """Name each value of `widgets_values`; a widget that is a socket in this workflow keeps its place in the list.

    Raises:
        ValueError: a required widget has no value; `name` says of which node.
    """
    return dict(_named(list(values), info["input"], info.get("input_order"), name, ""))


def _named(
    values: list[Any], inputs: Mapping[str, Any], order: Mapping[str, list] | None, name: str, prefix: str
) -> Iterator[tuple[str, Any]]:
    """Widgets with their values, which are taken off the front of `values`, nested ones after their choice."""
    for widget, kind, options, required in _widgets(inputs, order):
        if not values:
            if prefix and (default := _default(kind, options)) is not None:
                values.append(default)  # the file is older than the choice's further widgets
            elif not required:
                return
            else:
                raise ValueError(f"{name} has no value for '{widget}': open the workflow in ComfyUI and save it again.")
        value = values.pop(0)
        yield f"{prefix}{widget}", value
        if kind == DYNAMIC_COMBO:
            chosen = next((one["inputs"] for one in options["options"] if one["key"] == value), {})
            yield from _named(values, chosen, None, name, f"{prefix}{widget}.")
        # The interface adds a widget of its own behind every seed.
        seed = options.get("control_after_generate") or widget in {"seed", "noise_seed"}
        if seed and values and values[0] in AFTER_GENERATE:
            values.pop(0)


def _default(kind: Any, options: Mapping[str, Any]) -> Any:
    return options["options"][0]["key"] if kind == DYNAMIC_COMBO else options.get("default")


def _widgets(
    inputs: Mapping[str, Any], order: Mapping[str, list] | None
) -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
    """Name, type, options and whether it must have a value, of every widget in the order of `widgets_values`."""
    for group in ("required", "optional"):
        for name in (order or inputs).get(group, []):
            kind, *options = inputs[group][name]
            options = options[0] if options else {}
            if options.get("forceInput") or options.get("hidden"):
                continue
            if isinstance(kind, list) or kind in WIDGETS | {DYNAMIC_COMBO}:
                yield name, kind, options, group == "required"
