"""What an artist sees of the nodes in the real server: every one explained, none without a help page."""

import json
import re
import urllib.request

import pytest

from tools.comfy_host import ComfyServer
from tools.environment import ROOT

HELP = ROOT / "web" / "docs"
IDS = list(json.loads((ROOT / "tests" / "contract.json").read_text("utf-8")))


@pytest.fixture(scope="module")
def info(comfy: ComfyServer) -> dict:
    return {node: what for node, what in comfy.object_info().items() if node.startswith("FantasyID")}


def inputs(what: dict) -> dict[str, dict]:
    """Name → options of the inputs of a node that an artist sees."""
    shown = what["input"].get("required", {}) | what["input"].get("optional", {})
    return {name: rest[0] if rest else {} for name, (_, *rest) in shown.items()}


def test_these_are_the_nodes(info: dict):
    assert sorted(info) == sorted(IDS)


@pytest.mark.parametrize("node", IDS)
def test_node_has_a_name_a_category_and_a_description(info: dict, node: str):
    what = info[node]
    assert re.fullmatch(r"FantasyID/[1-6] [a-z ]+", what["category"])
    assert "FantasyID" in what["display_name"]
    assert len(what["description"]) > 40


@pytest.mark.parametrize("node", IDS)
def test_every_input_and_output_has_a_tooltip(info: dict, node: str):
    assert [name for name, options in inputs(info[node]).items() if not options.get("tooltip")] == []
    assert len(info[node]["output_tooltips"]) == len(info[node]["output"])
    assert all(info[node]["output_tooltips"])


@pytest.mark.parametrize("node", IDS)
def test_help_page_names_every_input(info: dict, node: str):
    page = (HELP / f"{node}.md").read_text("utf-8")
    assert [name for name in inputs(info[node]) if f"`{name}`" not in page] == []


def test_server_serves_the_help_pages(comfy: ComfyServer):
    for node in IDS:
        with urllib.request.urlopen(f"{comfy.url}/extensions/ComfyUI-FantasyID/docs/{node}.md") as answer:
            assert answer.read() == (HELP / f"{node}.md").read_bytes()
