"""A face cut out of a video, drawn again and put back, in the real server."""

import numpy as np
import pytest
from PIL import Image

from tools.comfy_host import ComfyServer, Graph
from tools.complaints import check
from tools.graphs import node

FRAMES = 3


def cut(photo: str, **changes: object) -> Graph:
    """A video of one photo, and its face's clip put back as it was cut."""
    settings = {"fps": 8.0, "width": 96, "height": 64, "around": 2.2} | changes
    return {
        "photo": node("LoadImage", image=photo),
        "video": node("RepeatImageBatch", image=["photo", 0], amount=FRAMES),
        "track": node("FantasyIDFaceTrack", images=["video", 0], **settings),
        "paste": node(
            "FantasyIDPasteFace", images=["video", 0], clip=["track", 0], face_clip=["track", 1], match_colours=1.0
        ),
        "before": node("PreviewImage", images=["video", 0]),
        "clip": node("PreviewImage", images=["track", 0]),
        "pasted": node("PreviewImage", images=["paste", 0]),
    }


@pytest.mark.usefixtures("lives_on")
def test_a_face_goes_out_of_a_video_and_back(comfy: ComfyServer, photo: str):
    graph = cut(photo)
    graph["face"] = node("FantasyIDDetectFace", image=["photo", 0], select="largest", index=0, min_score=0.6)
    graph["track"]["inputs"]["face"] = ["face", 0]
    graph["black"] = node("EmptyImage", width=96, height=64, batch_size=5, color=0)
    graph["paste"]["inputs"]["clip"] = ["black", 0]
    graph["paste"]["inputs"]["match_colours"] = 0.0
    done = comfy.run(graph)
    assert done.status == "success", done.error
    assert comfy.notes["track"].splitlines() == [
        f"The face is in {FRAMES} of {FRAMES} frames (100%).",
        "A clip of 96 × 64 pixels and 5 frames. For the model's own size connect 'model' and set 'settings' to "
        "'default for this model'.",
    ]
    assert len(done.outputs["clip"]["images"]) == 5
    assert len(done.outputs["pasted"]["images"]) == FRAMES
    before, after = (
        np.asarray(Image.open(comfy.base / "temp" / done.outputs[key]["images"][0]["filename"]), np.int64)
        for key in ("before", "pasted")
    )
    changed = (after != before).any(-1)
    assert 0.01 < changed.mean() < 0.5, "the face alone"
    assert after[changed].mean() < before[changed].mean() / 2


def test_what_is_wrong_is_said_at_the_node(comfy: ComfyServer, photo: str):
    blank = cut(photo)
    blank["video"] = node("EmptyImage", width=64, height=64, batch_size=2, color=0)
    check(comfy, blank, "FantasyIDFaceTrack", "not found in any of the 2 frames")
    check(comfy, cut(photo, settings="default for this model"), "FantasyIDFaceTrack", "connect 'model'")
    other = cut(photo)
    other["paste"]["inputs"]["images"] = ["photo", 0]
    check(comfy, other, "FantasyIDPasteFace", "cut out of 3 frames", "has 1 of")
