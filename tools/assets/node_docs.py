"""`python -m tools.assets.node_docs`: docs/nodes.md from the nodes' schemas. A test asks a server for the same."""

import asyncio
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .. import in_process
from ..environment import ROOT

PAGE = ROOT / "docs" / "nodes.md"
FILES = {"file", "model_name", "parts_from", "vae_name"}  # what they offer lies in folders
HEAD = """# Nodes

Written by `python -m tools.assets.node_docs` from the nodes' schemas: change those, not this page. The
[help pages](../web/docs) in ComfyUI say when to use each, with tips and what its errors mean.
"""


def document(info: dict[str, dict]) -> str:
    """The page, from what ComfyUI's `/object_info` tells of the pack's nodes, by id."""
    nodes = {name: what for name, what in info.items() if name.startswith("FantasyID")}
    return "\n".join([HEAD, *(_node(name, nodes[name]) for name in sorted(nodes))])


def _node(name: str, what: dict) -> str:
    lines = [f"## {what['display_name']}", "", f"`{name}`. {_text(what['description'])}", ""]
    if rows := list(_inputs(what["input"])):
        lines += ["| Input | Type | Default | Values | Meaning |", "| --- | --- | --- | --- | --- |", *rows, ""]
    outputs = zip(what["output"], what["output_name"], what.get("output_tooltips") or [], strict=False)
    if rows := [f"| `{label}` | {kind} | {_text(tooltip)} |" for kind, label, tooltip in outputs]:
        lines += ["| Output | Type | Meaning |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _inputs(inputs: dict[str, dict]) -> Iterator[str]:
    for group in ("required", "optional"):
        for name, (kind, *rest) in inputs.get(group, {}).items():
            options = rest[0] if rest else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            shown = f"`{name}`" + (" (optional)" if group == "optional" else "")
            cells = [
                shown,
                "COMBO" if isinstance(kind, list) else kind,
                _text(options.get("default", "")),
                _values(name, choices, options),
                _text(options.get("tooltip", "")),
            ]
            yield f"| {' | '.join(cells)} |"


def _values(name: str, choices: list | None, options: dict) -> str:
    if choices is not None:
        return "files" if name in FILES else _text(", ".join(map(str, choices)))
    if "min" in options:
        return f"{options['min']} … {options['max']}"
    return ""


def _text(value: object) -> str:
    """One cell of a table."""
    return re.sub(r"\s+", " ", str(value)).strip().replace("|", "\\|")


def _schemas() -> dict[str, dict]:
    from pack.nodes import comfy_entrypoint

    async def nodes() -> list:
        return await (await comfy_entrypoint()).get_node_list()

    found = {}
    for node in asyncio.run(nodes()):
        found[node.GET_SCHEMA().node_id] = node.GET_NODE_INFO_V1()
    return found


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as base:
        in_process.start(Path(base), "--cpu")
        PAGE.write_text(document(_schemas()), "utf-8")


if __name__ == "__main__":
    main()
