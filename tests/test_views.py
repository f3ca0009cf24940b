"""Several photos of one person → the reference first, then the best that differ."""

import logging

import pytest
import torch

from fantasyid_core.detection import DetectedFace, detect
from fantasyid_core.errors import ImageError
from fantasyid_core.images import resize
from fantasyid_core.views import FaceViews, collect, contact_sheet


@pytest.fixture(scope="module")
def reference(astronaut: torch.Tensor) -> DetectedFace:
    return detect(astronaut)[0]


@pytest.fixture(scope="module")
def portraits(six_faces: torch.Tensor) -> torch.Tensor:
    """Six different portraits (6, 256, 256, 3) cut from the group photo."""
    return torch.stack([resize(face.crop, 256, 256) for face in detect(six_faces)])


def test_reference_alone(reference: DetectedFace):
    views = collect(reference)
    assert torch.equal(views.crops, reference.crop[None])
    assert views.scores.tolist() == pytest.approx([reference.score])


def test_reference_first_then_best_first(reference: DetectedFace, portraits: torch.Tensor):
    views = collect(reference, portraits)
    assert torch.equal(views.crops[0], reference.crop)
    assert views.crops.shape == (7, 512, 512, 3)
    rest = views.scores[1:].tolist()
    assert rest == sorted(rest, reverse=True)


def test_limit_keeps_the_most_certain(reference: DetectedFace, portraits: torch.Tensor):
    everything, three = collect(reference, portraits), collect(reference, portraits, max_views=3)
    assert torch.equal(three.crops, everything.crops[:3])
    assert len(collect(reference, portraits, max_views=1).crops) == 1


def test_near_duplicates_are_dropped_the_better_stays(reference: DetectedFace, portraits: torch.Tensor):
    clip = torch.cat([portraits[:1] * 0.99, portraits[:1], portraits[1:2], portraits[1:2]])
    views = collect(reference, clip)
    assert len(views.crops) == 3
    best = [max(detect(frame)[0].score for frame in pair) for pair in (clip[:2], clip[2:])]
    assert views.scores[1:].tolist() == pytest.approx(sorted(best, reverse=True))


def test_reference_is_not_repeated(reference: DetectedFace, astronaut: torch.Tensor):
    assert len(collect(reference, astronaut).crops) == 1


def test_frames_without_a_face_are_skipped_and_counted(
    reference: DetectedFace, portraits: torch.Tensor, caplog: pytest.LogCaptureFixture
):
    frames = torch.cat([torch.zeros(2, 256, 256, 3), portraits[:1]])
    with caplog.at_level(logging.INFO, logger="fantasyid_core.views"):
        views = collect(reference, frames)
    assert len(views.crops) == 2
    assert "2 of 3 frames" in caplog.text


def test_unusable_frames_say_why(reference: DetectedFace):
    with pytest.raises(ImageError, match="expected a batch"):
        collect(reference, torch.zeros(64, 64, 3))
    with pytest.raises(ImageError, match="NaN"):
        collect(reference, torch.full((1, 64, 64, 3), torch.nan))
    with pytest.raises(ImageError, match="max_views is 0"):
        collect(reference, max_views=0)


@pytest.mark.parametrize(("count", "shape"), [(1, (64, 64, 3)), (4, (64, 256, 3)), (5, (128, 256, 3))])
def test_contact_sheet_shows_every_view_in_reading_order(count: int, shape: tuple[int, int, int]):
    greys = torch.linspace(0.2, 0.9, count)
    crops = greys[:, None, None, None].expand(-1, 512, 512, 3)
    sheet = contact_sheet(FaceViews(crops, torch.rand(count)), columns=4, size=64)
    assert sheet.shape == shape
    corners = [sheet[i // 4 * 64 + 60, i % 4 * 64 + 60, 0] for i in range(count)]
    torch.testing.assert_close(torch.stack(corners), greys, atol=1 / 255, rtol=0)
    labels = [sheet[i // 4 * 64 :, i % 4 * 64 :][:24, :40] for i in range(count)]
    assert all((label == 0).any() and label.max() > greys.max() - 0.05 for label in labels)
