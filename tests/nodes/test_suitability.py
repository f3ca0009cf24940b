"""The verdict on a reference photo: what makes it good, usable or useless is said in words."""

from dataclasses import replace

import pytest
import torch

from fantasyid_core.detection.by_hand import face_in_box
from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.detection.head_pose import HeadPose
from fantasyid_core.detection.quality import eye_brightness
from fantasyid_core.detection.selection import numbered, select
from fantasyid_core.images import load_photo
from fantasyid_core.views.suitability import GOOD, NO_FACE, UNUSABLE, USABLE, assess, openness
from tools.comfy_host import ComfyServer
from tools.graphs import node


@pytest.fixture(scope="module")
def face(portrait) -> DetectedFace:
    return detect(load_photo(portrait))[0]


def test_an_open_face_that_looks_ahead_is_good(face: DetectedFace):
    assert str(assess(face)) == "good."


@pytest.mark.parametrize(
    ("change", "word", "reason"),
    [
        ({"pose": HeadPose(yaw=-58)}, UNUSABLE, "turned by 58° to the side"),
        ({"pose": HeadPose(yaw=35)}, USABLE, "turned by 35° to the side"),
        ({"pose": HeadPose(pitch=-45)}, UNUSABLE, "looks down by 45°"),
        ({"box": torch.tensor([0.0, 0.0, 60.0, 80.0])}, USABLE, "only 60 px wide"),
        ({"box": torch.tensor([0.0, 0.0, 30.0, 40.0])}, UNUSABLE, "only 30 px wide"),
        ({"sharpness": 0.1}, UNUSABLE, "blurred"),
        ({"occlusion": 0.3}, UNUSABLE, "cuts off 30%"),
        ({"score": 0.7}, UNUSABLE, "hardly looks like an open face"),
        ({"score": 0.89}, USABLE, "does not plainly look like an open face"),
    ],
)
def test_what_stands_against_a_face_is_said(face: DetectedFace, change: dict, word: str, reason: str):
    found = assess(replace(face, **change))
    assert found.word == word
    assert reason in str(found)


@pytest.mark.parametrize("grey", [0.02, 0.1])
def test_dark_glasses_are_seen(face: DetectedFace, grey: float):
    crop = face.crop.clone()
    crop[210:275, 145:365] = grey
    found = assess(replace(face, crop=crop))
    assert found.word == UNUSABLE
    assert "dark glasses" in str(found)


@pytest.mark.parametrize("light", [0.3, 1.3])
def test_how_dark_eyes_are_is_measured_by_the_skin(face: DetectedFace, light: float):
    """A dark photo, or dark skin, is no glasses."""
    crops = torch.stack([face.crop, (face.crop * light).clamp(0, 1)])
    assert eye_brightness(crops).tolist() == pytest.approx([0.8, 0.8], abs=0.1)


def test_the_worst_comes_first(face: DetectedFace):
    found = assess(replace(face, sharpness=0.3, pose=HeadPose(yaw=60)))
    assert found.word == UNUSABLE
    assert found.reasons == ("it is turned by 60° to the side", "it is blurred")


def test_an_animal_is_no_open_face(face: DetectedFace):
    """A cat's head, where a detector would take it for a face with some doubt."""
    cat = torch.from_numpy(pytest.importorskip("skimage.data").chelsea()).float() / 255
    animal = replace(face_in_box(cat, (130, 60, 300, 230)), score=0.8)
    assert float(openness([animal])[0]) < NO_FACE
    assert float(openness([face])[0]) > 0


def test_of_no_faces_nothing_is_said():
    assert openness([]).shape == (0,)


def test_rightmost(six_faces: torch.Tensor):
    faces = detect(six_faces[0])
    assert select(faces, "rightmost") is max(faces, key=lambda face: float(face.box[2]))


def test_the_preview_says_the_word(face: DetectedFace):
    assert (numbered([face], face, GOOD) != numbered([face], face)).any()


def test_the_page_shows_the_verdict_under_the_node(comfy: ComfyServer, photo: str):
    face = node("FantasyIDDetectFace", image=["photo", 0], select="largest", index=0, min_score=0.6)
    graph = {"photo": node("LoadImage", image=photo), "face": face, "show": node("PreviewAny", source=["face", 4])}
    run = comfy.run(graph)
    assert run.status == "success", run.error
    assert run.outputs["show"]["text"] == ["good."]
    assert comfy.notes["face"] == "good."


def test_a_box_shows_what_the_nodes_in_it_say(comfy: ComfyServer, photo: str):
    """The page numbers nodes in subgraphs so: 7 is the box, 7:2 a box in it."""
    face = node("FantasyIDDetectFace", image=["photo", 0], select="largest", index=0, min_score=0.61)
    graph = {"photo": node("LoadImage", image=photo), "7:2:1": face}
    run = comfy.run(graph | {"show": node("PreviewAny", source=["7:2:1", 4])})
    assert run.status == "success", run.error
    assert [comfy.notes[name] for name in ("7:2:1", "7:2", "7")] == ["good."] * 3
