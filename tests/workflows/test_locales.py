"""Nodes in other languages: every node, input and output has its words, and none is left of what is gone."""

import json

import pytest

from tools.comfy_host import ComfyServer
from tools.environment import ROOT

LANGUAGES = ["ja", "zh"]


def words(language: str, file: str) -> dict:
    return json.loads((ROOT / "locales" / language / file).read_text("utf-8"))


def described(info: dict) -> dict[str, tuple[set[str], int]]:
    """Of each node of the pack the names of its inputs and the number of its outputs."""
    return {
        name: (set(node["input"].get("required", {})) | set(node["input"].get("optional", {})), len(node["output"]))
        for name, node in info.items()
        if name.startswith("FantasyID")
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_its_words(comfy: ComfyServer, language: str):
    translated = words(language, "nodeDefs.json")
    nodes = described(comfy.object_info())
    assert set(translated) == set(nodes)
    for name, (inputs, outputs) in nodes.items():
        translation = translated[name]
        assert set(translation["inputs"]) == inputs, name
        assert list(translation["outputs"]) == [str(i) for i in range(outputs)], name
        assert all(translation[key].strip() for key in ("display_name", "description")), name
        for key, each in {**translation["inputs"], **translation["outputs"]}.items():
            assert all(each[part].strip() for part in ("name", "tooltip")), f"{name}: {key}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_folder_of_the_menu_has_its_words(comfy: ComfyServer, language: str):
    folders = {
        part
        for name, node in comfy.object_info().items()
        if name.startswith("FantasyID")
        for part in node["category"].split("/")
    }
    assert set(words(language, "main.json")["nodeCategories"]) == folders


def test_names_of_nodes_are_unlike_each_other():
    for language in LANGUAGES:
        names = [node["display_name"] for node in words(language, "nodeDefs.json").values()]
        assert len(set(names)) == len(names)


def test_the_server_hands_them_to_the_page(comfy: ComfyServer):
    handed = comfy.translations()
    for language in LANGUAGES:
        assert words(language, "nodeDefs.json").items() <= handed[language]["nodeDefs"].items()
        assert "FantasyID" in handed[language]["nodeCategories"]
