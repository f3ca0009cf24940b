"""The archive that the registry installs: what is in it, and that it is all that ComfyUI needs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tools.archive import archived_files, tracked_files, unpack
from tools.comfy_host import ComfyServer
from tools.environment import ROOT
from tools.workflow import to_graph

FOLDERS = {"fantasyid_core", "locales", "models", "nodes", "subgraphs", "web", "workflows"}
FILES = {"LICENSE", "README.md", "THIRD_PARTY.md", "__init__.py", "pyproject.toml", "requirements.txt"}
CONTRACT = json.loads((ROOT / "tests" / "contract.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A new ComfyUI with the archive's files as the pack, and nothing else."""
    pack = unpack(tmp_path_factory.mktemp("archive"))
    with ComfyServer(tmp_path_factory.mktemp("empty"), pack=pack) as server:
        yield server


def test_it_holds_what_nodes_need_and_no_more():
    files = [Path(file) for file in archived_files()]
    assert {file.parts[0] for file in files if len(file.parts) > 1} == FOLDERS
    assert {file.name for file in files if len(file.parts) == 1} == FILES
    nano = sum((ROOT / file).stat().st_size for file in files if file.parts[0] == "models")
    rest = sum((ROOT / file).stat().st_size for file in files if file.parts[0] != "models")
    assert rest < 7.3e6 < nano
    assert not [file for file in files if file.suffix in {".py", ".json"} and "test" in file.stem]
    whole = {"nodes", "web", "locales", "subgraphs", "models"}  # a pattern for the top must not reach into these
    assert {file for file in map(Path, tracked_files()) if file.parts[0] in whole} <= set(files)


def test_all_nodes_are_there(installed: ComfyServer):
    info = installed.object_info()
    assert {name for name in info if name.startswith("FantasyID")} == set(CONTRACT)
    assert "FantasyID-nano" in info["FantasyIDLoadModel"]["input"]["required"]["model_name"][1]["options"]


def test_the_first_workflow_runs(installed: ComfyServer):
    file = next(path for path in archived_files() if path.startswith("workflows/01") and path.endswith(".json"))
    graph = to_graph(json.loads((ROOT / file).read_text("utf-8")), installed.object_info())
    (sampler,) = [node for node in graph.values() if node["class_type"] == "FantasyIDSampler"]
    sampler["inputs"] |= {"settings": "as set here", "steps": 1, "frames": 5, "width": 96, "height": 96}
    run = installed.run(graph, timeout=300)
    assert run.error is None
    assert [file["filename"] for file in run.files if file["type"] == "output"] == ["video_00001_.mp4"]


def test_the_registry_s_pictures_are_in_the_repository():
    """Icon and banner are addresses in the repository: they must lead to files of it, of the sizes it asks for."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    repository = re.search(r'Repository = "https://github.com/(.+)"', project)[1]
    for key, shape in (("Icon", 1.0), ("Banner", 21 / 9)):
        address = re.search(rf'^{key} = "(.+)"$', project, re.MULTILINE)[1]
        start = f"https://raw.githubusercontent.com/{repository}/main/"
        assert address.startswith(start)
        with Image.open(ROOT / address.removeprefix(start)) as picture:
            assert picture.width / picture.height == pytest.approx(shape, abs=0.01)
            assert picture.width >= 400
