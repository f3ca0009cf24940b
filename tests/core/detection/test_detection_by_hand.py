"""Faces where the artist says they are, and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasyid_core.detection import __main__ as detection_cli
from fantasyid_core.detection.alignment import FFHQ_TEMPLATE
from fantasyid_core.detection.by_hand import face_in_box, face_in_mask
from fantasyid_core.detection.faces import detect
from fantasyid_core.errors import FaceNotFoundError, FantasyIDError, ImageError
from tools.environment import ROOT


def test_box_around_a_face_gives_nearly_the_detected_crop(astronaut: torch.Tensor):
    (found,) = detect(astronaut)
    face = face_in_box(astronaut, tuple(found.box.tolist()))
    assert (face.landmarks - found.landmarks).norm(dim=1).max() < 0.2 * float(found.box[2] - found.box[0])
    assert face.score == 1
    assert torch.equal(face.box, found.box)


def test_landmarks_that_are_known_are_taken(astronaut: torch.Tensor):
    (found,) = detect(astronaut)
    face = face_in_box(astronaut, tuple(found.box.tolist()), found.landmarks)
    torch.testing.assert_close(face.crop, found.crop)


def test_drawing_that_no_detector_knows():
    """An upright frontal face is assumed: its crop shows the drawing upright, the box in the middle."""
    picture = torch.zeros(400, 600, 3)
    picture[100:310, 200:360] = 0.5  # a face without any
    assert detect(picture) == []
    face = face_in_box(picture, (200, 100, 360, 310))
    placed = face.landmarks @ face.to_crop[:, :2].T + face.to_crop[:, 2]
    torch.testing.assert_close(placed, torch.tensor(FFHQ_TEMPLATE), atol=0.1, rtol=0)
    assert (face.crop[200:400, 200:310] - 0.5).abs().max() < 0.01


def test_mask_of_any_size_is_its_outline():
    picture = torch.rand(300, 400, 3)
    mask = torch.zeros(1, 30, 80)
    mask[:, 10:22, 20:40] = 1
    face = face_in_mask(picture, mask)
    torch.testing.assert_close(face.box, torch.tensor([100.0, 100, 200, 220]))


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (torch.zeros(8, 8), FaceNotFoundError, "mask is empty. Paint it over the face"),
        (torch.full((8, 8), torch.nan), FaceNotFoundError, "mask is empty"),
        (torch.eye(200)[:1].repeat(3, 1), FaceNotFoundError, "does not hold a face: expected at least 24 px"),
        (torch.ones(2, 8, 8), ImageError, r"mask has shape \(2, 8, 8\)"),
    ],
)
def test_mask_that_says_nothing(mask: torch.Tensor, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        face_in_mask(torch.rand(300, 400, 3), mask)


@settings(deadline=None, max_examples=30)
@given(box=st.tuples(*[st.one_of(st.floats(-1e6, 1e6), st.sampled_from([float("nan"), float("inf"), 0.0, 100.0]))] * 4))
def test_any_box_gives_a_face_or_says_why_not(box: tuple[float, float, float, float]):
    try:
        face = face_in_box(torch.full((120, 160, 3), 0.5), box)
    except FantasyIDError:
        return
    assert torch.isfinite(face.crop).all()


def test_command_prints_a_line_per_photo(portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(portrait.read_bytes()[:2000])
    assert detection_cli.main([str(portrait), str(damaged), "--device", "cpu"]) == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert (good["width"], good["height"]) == (512, 512)
    (face,) = good["faces"]
    assert set(face) == {"box", "landmarks", "pose", "score", "sharpness", "occlusion", "quality"}
    assert len(face["landmarks"]) == 5
    assert -20 < face["pose"]["yaw"] < 20
    assert face["score"] > 0.9
    assert "damaged.jpg" in bad["error"]


def test_command_runs_as_a_module(portrait: Path):
    command = [sys.executable, "-m", "fantasyid_core.detection", str(portrait)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert len(json.loads(done.stdout)["faces"]) == 1
