"""From a video to another person's moving mesh, its file, and the performance's file, in the real server."""

import json
import struct

import pytest

from fantasyid_core.fusion.identity import load_identity
from tools.comfy_host import ComfyServer, Graph
from tools.complaints import check
from tools.graphs import node

NANO, FRAMES = "FantasyID-nano", 4


def captured(photo: str, model: str = NANO, **links: list) -> Graph:
    """A video of one photo, and what its face does."""
    return {
        "photo": node("LoadImage", image=photo),
        "video": node("RepeatImageBatch", image=["photo", 0], amount=FRAMES),
        "face": node("FantasyIDDetectFace", image=["photo", 0], select="largest", index=0, min_score=0.6),
        "capture": node("FantasyIDCapture", images=["video", 0], model_name=model, fps=12.0, **links),
        "points": node("PreviewImage", images=["capture", 1]),
    }


def performed(source: str, **changes: object) -> Graph:
    """A mesh of the photo's person that performs."""
    settings = {"expression_strength": 1.0, "head_strength": 1.0, "first_frame": 0, "last_frame": -1, "length": 0}
    settings |= {"afterwards": "hold", "size": 64} | changes
    return {
        "mesh": node(
            "FantasyIDReconstruct", face=["face", 0], model_name=NANO, mode="shape only", method="landmark fit"
        ),
        "perform": node("FantasyIDPerform", mesh=["mesh", 0], performance=[source, 0], model_name=NANO, **settings),
        "frames": node("PreviewImage", images=["perform", 1]),
    }


@pytest.mark.usefixtures("lives_on")
def test_a_video_becomes_a_moving_mesh_and_files(comfy: ComfyServer, photo: str):
    graph = captured(photo, face=["face", 0]) | performed("capture", length=6, afterwards="ping-pong")
    graph["glb"] = node("FantasyIDSaveAnimation", animation=["perform", 0], filename_prefix="fantasyid/a")
    graph["kept"] = node("FantasyIDSavePerformance", performance=["capture", 0], filename_prefix="fantasyid/p")
    done = comfy.run(graph)
    assert done.status == "success", done.error
    assert comfy.notes["capture"] == f"The face is in {FRAMES} of {FRAMES} frames (100%)."
    (name,) = done.outputs["kept"]["text"]
    (glb,) = done.outputs["glb"]["text"]
    data = (comfy.base / "output" / glb).read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    document = json.loads(data[20 : 20 + length])
    times = document["accessors"][document["animations"][0]["samplers"][0]["input"]]
    assert times["count"] == 6
    assert times["max"] == pytest.approx([5 / 12])
    assert len(done.outputs["frames"]["images"]) == 6

    faces = {"photo": graph["photo"], "face": graph["face"]}
    again = faces | {"load": node("FantasyIDLoadPerformance", file=name)} | performed("load", first_frame=1)
    done = comfy.run(again)
    assert done.status == "success", done.error
    assert len(done.outputs["frames"]["images"]) == FRAMES - 1

    again["model"] = node("FantasyIDLoadModel", model_name=NANO, weight_dtype="default")
    again["views"] = node("FantasyIDViews", face=["face", 0], max_views=1)
    again["fuse"] = node(
        "FantasyIDFuse",
        encoder=["model", 2],
        views=["views", 0],
        mesh=["mesh", 0],
        combine="first view",
        animation=["perform", 0],
    )
    again["who"] = node("FantasyIDSaveIdentity", identity=["fuse", 0], filename_prefix="fantasyid/acts")
    done = comfy.run(again)
    assert done.status == "success", done.error
    assert comfy.notes["fuse"].startswith("The face acts for 0.2 s of a video of 8 frames a second. This model was not")
    (name,) = done.outputs["who"]["text"]
    identity = load_identity(comfy.base / "output" / name.removesuffix(" [output]"))
    assert identity.frame_tokens.shape == (2, *identity.vertex_tokens.shape)


def test_landmarks_of_comfyui_s_own_node_are_taken(comfy: ComfyServer, photo: str):
    graph = captured(photo, face_landmarks=["landmarks", 0])
    graph["landmarks"] = node("ProbeLandmarks")
    done = comfy.run(graph)
    assert done.status == "success", done.error
    assert comfy.notes["capture"].startswith("The face is in 3 of 4 frames")
    graph["video"]["inputs"]["amount"] = 3
    check(comfy, graph, "FantasyIDCapture", "landmarks of 4 frames, but 3 images")


def test_bad_videos_models_and_files_are_named(comfy: ComfyServer, photo: str):
    blank = captured(photo)
    blank["video"] = node("EmptyImage", width=64, height=64, batch_size=2, color=0)
    check(comfy, blank, "FantasyIDCapture", "not found in any of the 2 frames")
    check(comfy, captured(photo, "FantasyID") | performed("capture"), "FantasyIDPerform", "another face model")
    check(comfy, captured(photo) | performed("capture", first_frame=9), "FantasyIDPerform", "has 4")
    for name in ("../../etc/passwd", "/etc/passwd", "x.txt", "gone.safetensors"):
        graph = captured(photo) | {"load": node("FantasyIDLoadPerformance", file=name)} | performed("load")
        check(comfy, graph, "FantasyIDLoadPerformance", name, "ut the ")
    (comfy.base / "input" / "torn.safetensors").write_bytes(b"torn")
    graph = captured(photo) | {"load": node("FantasyIDLoadPerformance", file="torn.safetensors")} | performed("load")
    check(comfy, graph, "FantasyIDLoadPerformance", "torn.safetensors")
    graph = captured(photo)
    graph["kept"] = node("FantasyIDSavePerformance", performance=["capture", 0], filename_prefix="../outside")
    check(comfy, graph, "FantasyIDSavePerformance", "must stay in the output folder")
