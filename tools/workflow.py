"""Turn a workflow as the interface saves it (nodes, links, widgets_values) into a graph for the server's API."""

from collections.abc import Iterator
from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}


def to_graph(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """API graph of `workflow`: node id → class_type, inputs, `_meta.title`.

    Args:
        workflow: a `workflows/*.json` file. Notes are left out; links through Reroute are followed.
        object_info: the server's description of all nodes.

    Optional widgets that a node got after the file was saved are left to the node.

    Raises:
        ValueError: a node is muted or bypassed, unknown to the server, or lacks a value that is required.
    """
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES}
    sources = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    graph = {}
    for node in nodes.values():
        name = f"{node['type']} (node {node['id']})"
        if node["type"] == "Reroute":
            continue
        if node.get("mode", 0) != 0:
            raise ValueError(f"{name} is muted or bypassed: enable or delete it before the workflow is run by the API.")
        if node["type"] not in object_info:
            raise ValueError(f"{name} is unknown to this ComfyUI: update the pack and ComfyUI, or replace the node.")
        info = object_info[node["type"]]
        inputs = _widget_values(node, info, name)
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                inputs[socket["name"]] = _source(sources[socket["link"]], nodes, sources)
        title = node.get("title") or info["display_name"]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return graph


def _widget_values(node: dict[str, Any], info: dict[str, Any], name: str) -> dict[str, Any]:
    """Name each value of `widgets_values`; a widget that is a socket in this workflow keeps its place in the list."""
    values = list(node.get("widgets_values") or [])
    inputs = {}
    for widget, options, required in _widgets(info):
        if not values:
            if not required:
                break
            raise ValueError(f"{name} has no value for '{widget}': open the workflow in ComfyUI and save it again.")
        inputs[widget] = values.pop(0)
        # The interface adds a widget of its own behind every seed.
        seed = options.get("control_after_generate") or widget in {"seed", "noise_seed"}
        if seed and values and values[0] in AFTER_GENERATE:
            values.pop(0)
    return inputs


def _widgets(info: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Name, options and whether it must have a value, of every widget in the order of `widgets_values`."""
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, *options = info["input"][group][name]
            options = options[0] if options else {}
            if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
                yield name, options, group == "required"


def _source(source: tuple[int, int], nodes: dict[int, Any], sources: dict[int, tuple[int, int]]) -> list[Any]:
    node, slot = source
    while nodes[node]["type"] == "Reroute":
        node, slot = sources[nodes[node]["inputs"][0]["link"]]
    return [str(node), slot]
