"""Meters on videos of any size, and the nodes in the real server."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from fantasyid_core.errors import FaceNotFoundError, ImageError
from fantasyid_core.meters import embedding as embeddings
from fantasyid_core.meters import landmark_motion, meters
from fantasyid_core.meters.attribute_regressor import FRAMING, SIZE, AttributeReading
from fantasyid_core.meters.plot import chart
from fantasyid_lab import nano
from fantasyid_lab.evaluation import cases
from fantasyid_lab.people.render import RenderedClips
from tools.comfy_host import ComfyServer
from tools.graphs import node
from tools.measure.reconstruction import face_model


@pytest.fixture(scope="module")
def clips() -> RenderedClips:
    """Two people, five frames each."""
    return cases.show([case.target for case in cases.draw(2)], stride=6)


class TrueRegressor(torch.nn.Module):
    """Knows landmarks and strengths of one clip whose frames fill the window that the meter cuts."""

    def __init__(self, landmarks: torch.Tensor, strengths: torch.Tensor | None = None):
        super().__init__()
        self.framing = FRAMING
        self.known = torch.nn.Parameter(landmarks)
        self.strengths = strengths

    def forward(self, frames: torch.Tensor) -> AttributeReading:
        count, none = len(frames), torch.zeros(len(frames), 50)
        strengths = none if self.strengths is None else self.strengths[:count]
        return AttributeReading(self.known[:count], none[:, :3], strengths, none, none)


def test_a_persons_own_video_is_more_like_than_a_strangers(clips: RenderedClips):
    pytest.importorskip("dlib")
    dlib = embeddings.load("dlib")
    own, stranger = clips.frames
    reference = clips.frames[0, 0]
    alike = meters.measure_likeness(own, reference, clips.landmarks[0, 0, :5], dlib)
    other = meters.measure_likeness(stranger, reference, None, dlib)
    assert alike.similarity[0] > 0.99
    assert alike.mean > other.mean
    assert alike.measured[0] < 0.2, "a frame to itself, by true and by found landmarks"
    assert float(alike.measured.nanmean()) < float(other.measured.nanmean())
    assert "below 0.6" in alike.report
    assert "By second: " in alike.report
    assert alike.plot.shape == (320, 640, 3)


def test_of_two_people_the_one_in_the_mask_is_compared(clips: RenderedClips):
    pytest.importorskip("dlib")
    dlib, both = embeddings.load("dlib"), torch.cat([clips.frames[0, :3], clips.frames[1, :3]], 2)
    left = torch.zeros(1, 10, 20)
    left[..., :10] = 1
    distances = [
        float(meters.measure_likeness(both, clips.frames[0, 0], None, dlib, mask=mask).measured.nanmean())
        for mask in (left, 1 - left)
    ]
    assert distances[0] < distances[1] - 0.1
    with pytest.raises(ImageError, match="mask has 2 frames, but the video has 3"):
        meters.measure_likeness(both, clips.frames[0, 0], None, dlib, mask=left.expand(2, -1, -1))
    for unusable in (left * torch.nan, left[:, :, :0]):
        with pytest.raises(ImageError, match="empty or has values that are no numbers"):
            meters.clear_faces(both, mask=unusable)
    with pytest.raises(FaceNotFoundError):
        meters.measure_likeness(both, clips.frames[0, 0], None, dlib, mask=0 * left)


def test_frames_without_a_face_are_skipped_and_said(clips: RenderedClips):
    pytest.importorskip("dlib")
    frames = torch.cat([clips.frames[0, :2], torch.zeros(1, 160, 160, 3)])
    found = meters.measure_likeness(frames, clips.frames[0, 0], None, embeddings.load("dlib"))
    assert math.isfinite(found.mean)
    assert "1 of 3 frames show no face" in found.report
    assert "2: no face" in found.report
    with pytest.raises(FaceNotFoundError, match="None of the 1 frames"):
        meters.measure_likeness(frames[2:], clips.frames[0, 0], None, embeddings.load("dlib"))
    with pytest.raises(FaceNotFoundError, match="The reference"):
        meters.measure_likeness(frames, frames[2], None, embeddings.load("dlib"))


def test_one_frame_gives_numbers(clips: RenderedClips):
    pytest.importorskip("dlib")
    found = meters.measure_likeness(clips.frames[0, :1], clips.frames[0, 0], None, embeddings.load("dlib"))
    assert found.between_frames == 1.0
    assert "nan" not in found.report
    assert "one frame counts" in found.report


def test_a_gallery_says_whom_the_video_is_nearest_to(clips: RenderedClips):
    pytest.importorskip("dlib")
    dlib, (own, stranger) = embeddings.load("dlib"), clips.frames
    right = meters.measure_likeness(own, own[0], None, dlib, gallery=[stranger[0]])
    assert (right.gallery.people, right.gallery.rank, right.gallery.nearest) == (1, 0, 1.0)
    assert right.gallery.margin > 0
    wrong = meters.measure_likeness(own, stranger[0], None, dlib, gallery=[own[0]])
    assert wrong.gallery.rank == 1
    assert wrong.gallery.margin == pytest.approx(-right.gallery.margin, abs=1e-5)
    assert "only number 2" in wrong.report
    with pytest.raises(FaceNotFoundError, match="gallery"):
        meters.measure_likeness(own, own[0], None, dlib, gallery=torch.zeros(1, 160, 160, 3))


def test_what_is_no_open_face_does_not_count(clips: RenderedClips, monkeypatch: pytest.MonkeyPatch):
    """As in a video of a dog, which the detector takes for a face."""
    pytest.importorskip("dlib")
    monkeypatch.setattr(meters, "openness", lambda faces: torch.tensor([-4.0]))
    landmarks = clips.landmarks[0, 0, :5]
    with pytest.raises(FaceNotFoundError, match="None of the 5 frames shows a clear face"):
        meters.measure_likeness(clips.frames[0], clips.frames[0, 0], landmarks, embeddings.load("dlib"))
    with pytest.raises(FaceNotFoundError, match="The reference hardly shows an open face"):
        meters.measure_likeness(clips.frames[0], clips.frames[0, 0], None, embeddings.load("dlib"))


def test_landmarks_come_back_from_the_window_to_the_frame(clips: RenderedClips):
    """A judge that always sees the same landmarks in its window: the head only moves as the window does."""
    landmarks = torch.rand(1, 68, 2).expand(5, -1, -1)
    found = meters.measure_motion(clips.frames[0], TrueRegressor(landmarks.contiguous()))
    assert found.face == pytest.approx(0, abs=1e-2)
    assert found.head == pytest.approx(0, abs=0.1)


def test_frames_without_a_face_keep_strengths_in_their_places(clips: RenderedClips):
    frames = torch.cat([clips.frames[0, :2], torch.zeros(1, 160, 160, 3), clips.frames[0, 2:4]])
    strengths = torch.linspace(0, 1, 4)[:, None].expand(-1, 50)
    found = meters.measure_motion(frames, TrueRegressor(torch.rand(1, 68, 2).expand(4, -1, -1).contiguous(), strengths))
    assert found.face_per_frame[2].isnan()
    assert found.face_per_frame[0] == pytest.approx(found.face_per_frame[4].item(), rel=1e-3)
    assert found.face_per_frame[0] > found.face_per_frame[1] > 0


def test_the_judges_own_frames_are_cut_out_as_they_are():
    """Windows undo what the framing was measured from, whether the face is near or far."""
    for eyes in (24.0, 33.0):
        face = torch.tensor([[80 - eyes / 2, 66.0], [80 + eyes / 2, 66.0], [80, 80], [70, 66 + eyes], [90, 66 + eyes]])
        wide, below = meters.framing(face.expand(9, -1, -1), SIZE)
        assert wide == pytest.approx(SIZE / eyes, rel=1e-3)
        window = meters.face_windows(face.expand(3, -1, -1), wide, below)
        torch.testing.assert_close(window[0], torch.tensor([80.0, 79.5, 160.0]), atol=0.1, rtol=0)


def test_one_window_serves_the_clip_unless_the_face_wanders():
    face = torch.tensor([[70.0, 66], [94.0, 66], [82.0, 80], [72.0, 91], [92.0, 91]])
    trembling = face + torch.randn(9, 1, 2, generator=torch.Generator().manual_seed(0))
    trembling[4] = float("nan")
    window = meters.face_windows(trembling, *FRAMING)
    assert window[4].isnan().all()
    assert (window[[0, 8]] == window[1]).all()
    wandering = face + torch.linspace(0, 300, 9)[:, None, None]
    assert (meters.face_windows(wandering, *FRAMING)[8] - meters.face_windows(wandering, *FRAMING)[0])[:2].min() > 250


def test_landmarks_tell_how_head_and_face_move(clips: RenderedClips):
    """Of a rendered clip; of its first frame, shown again and again, nothing moves."""
    frames, pose = clips.frames[0], clips.pose[0]
    found = landmark_motion.measure(frames, face_model())
    away = (pose - pose.mean(0)).norm(dim=1).square().mean().sqrt()
    assert found.motion.head == pytest.approx(float(away), rel=0.25, abs=0.5)
    assert found.mouth.shape == found.eyes.shape == (len(frames),)
    assert "The mouth is open" in meters.motion_report(found.motion, found.report)
    still = landmark_motion.measure(frames[:1].expand(3, -1, -1, -1), face_model())
    assert still.motion.face < 0.2 < found.motion.face
    assert still.motion.head < 0.2
    assert still.blinks == 0


def test_frames_without_a_face_are_left_out_of_what_landmarks_tell(clips: RenderedClips):
    dark = torch.zeros(1, 160, 160, 3)
    found = landmark_motion.measure(torch.cat([clips.frames[0, :2], dark]), face_model())
    assert found.motion.face_per_frame.isfinite().tolist() == [True, True, False]
    assert found.eyes[2].isnan()
    with pytest.raises(FaceNotFoundError, match="Only 1 of the 2"):
        landmark_motion.measure(torch.cat([clips.frames[0, :1], dark]), face_model())


def test_closed_eyes_are_counted_as_blinks():
    still = torch.full((8,), 0.3)
    eyes = still.clone()
    eyes[[0, 3, 4, 7]] = 0.05
    none = landmark_motion.LandmarkMotion(None, still, still)
    assert none.blinks == 0
    assert dataclasses.replace(none, eyes=eyes).blinks == 3
    assert "at most 30%" in none.report


def test_what_cannot_be_measured_says_why():
    regressor = TrueRegressor(torch.rand(1, 68, 2))
    with pytest.raises(ImageError, match="One frame"):
        meters.measure_motion(torch.rand(1, 160, 160, 3), regressor)
    with pytest.raises(FaceNotFoundError, match="Only 0 of the 2"):
        meters.measure_motion(torch.zeros(2, 160, 160, 3), regressor)
    with pytest.raises(ImageError, match="batch"):
        meters.measure_motion(torch.rand(160, 160, 3), regressor)


@pytest.mark.parametrize("values", [[0.5], [0.1, float("nan"), 0.4], [float("nan")] * 3, [2.0, 2.0]])
def test_charts_of_odd_curves_are_drawn(values: list[float]):
    picture = chart("title", {"a": values, "b": values}, 0.0, 1.0, {"mark": 0.5})
    assert picture.shape == (320, 640, 3)
    assert picture.std() > 0.01


@pytest.fixture(scope="module")
def video(comfy: ComfyServer, clips: RenderedClips, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A graph's part that makes a batch of two frames, `video`, and a photo of somebody, `photo`."""
    folder = tmp_path_factory.mktemp("frames")
    names = []
    for i, frame in enumerate((*clips.frames[0, :2], clips.frames[1, 0])):
        path = Path(folder) / f"meter{i}.png"
        Image.fromarray((frame * 255).round().to(torch.uint8).numpy()).save(path)
        names.append(comfy.upload_image(path))
    return {
        "one": node("LoadImage", image=names[0]),
        "two": node("LoadImage", image=names[1]),
        "photo": node("LoadImage", image=names[2]),
        "video": node("ImageBatch", image1=["one", 0], image2=["two", 0]),
    }


def test_the_likeness_meter_measures_and_shows(comfy: ComfyServer, video: dict):
    pytest.importorskip("dlib")
    graph = video | {
        "face": node("FantasyIDDetectFace", image=["one", 0], select="largest", index=0, min_score=0.6),
        "meter": node("FantasyIDLikenessMeter", frames=["video", 0], embedding="dlib", face=["face", 0]),
        "plot": node("PreviewImage", images=["meter", 2]),
        "text": node("PreviewAny", source=["meter", 3]),
    }
    run = comfy.run(graph)
    assert run.status == "success", run.error
    assert run.outputs["text"]["text"][0].startswith("Distance to the reference (dlib): mean 0.")
    assert comfy.notes["meter"].startswith("Distance to the reference (dlib): mean 0.")
    graph["meter"]["inputs"]["protocol"] = "ConsisID"
    run = comfy.run(graph)
    assert run.status == "success", run.error
    report = run.outputs["text"]["text"][0]
    assert re.match(r"dlib 0\.\d{4}, as ConsisID measures: 16 frames", report)
    assert "buffalo_l (det_10g.onnx and w600k_r50.onnx) is not there" in report


def test_the_likeness_meter_says_what_is_missing(comfy: ComfyServer, video: dict):
    meter = {"meter": node("FantasyIDLikenessMeter", frames=["video", 0], embedding="dlib")}
    run = comfy.run(video | meter | {"plot": node("PreviewImage", images=["meter", 2])})
    assert "connect 'face' or 'reference'" in str(run.error)
    meter["meter"]["inputs"] |= {"embedding": "ArcFace", "reference": ["photo", 0]}
    run = comfy.run(video | meter | {"plot": node("PreviewImage", images=["meter", 2])})
    assert "glintr100.onnx" in str(run.error)


@pytest.mark.skipif(not (nano.SHIPPED / "judge").is_dir(), reason="the trained judge is not there")
def test_the_motion_meter_measures_and_shows(comfy: ComfyServer, video: dict):
    graph = video | {
        "meter": node("FantasyIDMotionMeter", frames=["video", 0]),
        "plot": node("PreviewImage", images=["meter", 2]),
        "text": node("PreviewAny", source=["meter", 3]),
    }
    run = comfy.run(graph)
    assert run.status == "success", run.error
    assert run.outputs["text"]["text"][0].startswith("Face motion ")
    assert run.outputs["text"]["text"][0].endswith("Read by: dense landmarks.")
    graph["meter"]["inputs"]["read_by"] = "attribute regressor"
    assert comfy.run(graph).outputs["text"]["text"][0].endswith("Read by: attribute regressor.")
