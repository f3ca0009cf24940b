"""The real ComfyUI server with the pack in it: it starts, runs graphs, reports errors and lives on."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tools.comfy_host import ComfyServer, ServerError
from tools.workflow import to_graph

OPTIONAL = ("insightface", "onnxruntime", "timm", "kornia", "diffusers")
BROKEN = "raise OSError('undefined symbol: this package is broken')\n"
ABSENT = f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL}))\n"  # None: as if it were not installed


def picture(colour: int = 0x3366CC, prefix: str = "test/solid") -> dict:
    """A graph of the host's own nodes that saves a picture of one colour."""
    size = {"width": 64, "height": 48, "batch_size": 1}
    return {
        "1": {"class_type": "EmptyImage", "inputs": {**size, "color": colour}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def pack_nodes(server: ComfyServer) -> set[str]:
    return {node for node in server.object_info() if node.startswith("FantasyID")}


def test_server_lists_the_packs_nodes(comfy: ComfyServer):
    assert pack_nodes(comfy)


def test_graph_runs_and_its_picture_can_be_downloaded(comfy: ComfyServer):
    run = comfy.run(picture(colour=0x3366CC))
    assert (run.status, run.error) == ("success", None)
    (file,) = run.files
    saved = Image.open(io.BytesIO(comfy.download(file)))
    assert (saved.size, saved.getpixel((0, 0))) == ((64, 48), (0x33, 0x66, 0xCC))


def test_nodes_are_announced_as_they_start(comfy: ComfyServer):
    events = []
    run = comfy.run(picture(colour=0x010203), on_event=events.append)
    assert [(event.kind, event.node) for event in events] == [("executing", "1"), ("executing", "2")]
    assert run.events == tuple(events)


def test_uploaded_photo_is_what_load_image_loads(comfy: ComfyServer, tmp_path: Path):
    photo = tmp_path / "two words.png"
    Image.new("RGB", (32, 16), (9, 8, 7)).save(photo)
    graph = picture()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": comfy.upload_image(photo)}}
    saved = Image.open(io.BytesIO(comfy.download(comfy.run(graph).files[0])))
    assert (saved.size, saved.getpixel((0, 0))) == ((32, 16), (9, 8, 7))


def test_failing_node_is_named_and_the_next_run_succeeds(comfy: ComfyServer):
    run = comfy.run(picture(prefix="../../outside"))
    assert run.status == "error"
    assert (run.error.node_id, run.error.node_type) == ("2", "SaveImage")
    assert "outside the output folder" in run.error.message
    assert "save_images" in run.error.traceback
    assert comfy.run(picture(colour=0x445566)).status == "success"


def test_graph_that_cannot_run_is_refused_with_the_reason(comfy: ComfyServer):
    graph = picture()
    del graph["2"]["inputs"]["images"]
    with pytest.raises(ServerError, match="Required input is missing"):
        comfy.queue(graph)


def test_interrupted_run_says_so_and_the_next_run_succeeds(comfy: ComfyServer):
    graph = picture()
    graph["1"]["inputs"].update(width=1024, height=1024)
    blur = {"blur_radius": 31, "sigma": 10.0}
    for i in range(3, 103):
        graph[str(i)] = {"class_type": "ImageBlur", "inputs": {"image": [str(i - 1) if i > 3 else "1", 0], **blur}}
    graph["2"]["inputs"]["images"] = ["102", 0]
    run = comfy.run(graph, on_event=lambda event: comfy.interrupt() if event.node == "3" else None)
    assert (run.status, run.error, run.files) == ("interrupted", None, [])
    assert comfy.run(picture(colour=0x778899)).status == "success"


def test_memory_of_the_server_can_be_read(comfy: ComfyServer):
    assert comfy.rss_bytes() > 100 * 2**20


def test_saved_workflow_becomes_a_graph(comfy: ComfyServer):
    """Widget values are named in order, the interface's own behind the seed is left out, links win over widgets."""
    sampler_inputs = [
        {"name": "model", "type": "MODEL", "link": None},
        {"name": "latent_image", "type": "LATENT", "link": 7},
        {"name": "steps", "type": "INT", "link": 8, "widget": {"name": "steps"}},
    ]
    workflow = {
        "nodes": [
            {"id": 1, "type": "EmptyLatentImage", "widgets_values": [64, 48, 1]},
            {"id": 2, "type": "Note", "widgets_values": ["read me"]},
            {"id": 3, "type": "Reroute", "inputs": [{"name": "", "link": 6}]},
            {"id": 4, "type": "PrimitiveInt", "widgets_values": [20, "fixed"]},
            {
                **{"id": 5, "type": "KSampler", "title": "Sampler", "inputs": sampler_inputs},
                "widgets_values": [42, "randomize", 99, 6.5, "euler", "simple", 1.0],
            },
        ],
        "links": [[6, 1, 0, 3, 0, "LATENT"], [7, 3, 0, 5, 3, "LATENT"], [8, 4, 0, 5, 4, "INT"]],
    }
    graph = to_graph(workflow, comfy.object_info())
    assert set(graph) == {"1", "4", "5"}
    assert graph["1"]["inputs"] == {"width": 64, "height": 48, "batch_size": 1}
    assert graph["5"]["_meta"] == {"title": "Sampler"}
    assert graph["5"]["inputs"] == {
        "seed": 42,
        "steps": ["4", 0],
        "cfg": 6.5,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
        "latent_image": ["1", 0],
    }


def test_a_widget_that_a_node_got_after_the_file_was_saved_is_left_to_the_node():
    inputs = {
        "required": {"steps": ["INT", {}]},
        "optional": {"mask": ["MASK"], "old": ["COMBO", {}], "new": ["INT", {"default": 3}]},
    }
    info = {"input": inputs, "input_order": {group: list(names) for group, names in inputs.items()}}
    saved = {"nodes": [{"id": 1, "type": "Late", "widgets_values": [20, "a"]}], "links": []}
    graph = to_graph(saved, {"Late": {**info, "display_name": "Late"}})
    assert graph["1"]["inputs"] == {"steps": 20, "old": "a"}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({"id": 1, "type": "NoSuchNode"}, "NoSuchNode .* unknown"),
        ({"id": 1, "type": "EmptyImage", "widgets_values": [64]}, "no value for 'height'"),
    ],
)
def test_workflow_that_cannot_be_converted_says_which_node(comfy: ComfyServer, node: dict, reason: str):
    with pytest.raises(ValueError, match=reason):
        to_graph({"nodes": [node], "links": []}, comfy.object_info())


@pytest.mark.parametrize("how", ["absent", "broken"])
def test_pack_survives_without_optional_packages(comfy: ComfyServer, tmp_path: Path, how: str):
    """Each missing or broken package may cost what needs it, but never the nodes' being there."""
    packages = tmp_path / "packages"
    packages.mkdir()
    if how == "absent":
        (packages / "sitecustomize.py").write_text(ABSENT)  # Python runs this before anything else
    else:
        for name in OPTIONAL:
            (packages / f"{name}.py").write_text(BROKEN)
    with ComfyServer(tmp_path / "comfy", environment={"PYTHONPATH": str(packages)}) as server:
        assert "Canny" in comfy.object_info()
        assert "Canny" not in server.object_info()  # the host's own, which needs kornia: so the packages are gone
        assert pack_nodes(server) == pack_nodes(comfy) != set()
        assert server.run(picture()).status == "success"


def test_server_that_cannot_start_shows_its_log(tmp_path: Path):
    with (
        pytest.raises(ServerError, match="unrecognized arguments: --no-such-option"),
        ComfyServer(tmp_path, ["--no-such-option"]),
    ):
        pass
