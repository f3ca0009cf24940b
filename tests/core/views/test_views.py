"""Several photos of one person → the reference first, then what differs most."""

import dataclasses

import pytest
import torch

from fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.detection.head_pose import FRONTAL, HeadPose
from fantasyid_core.errors import ImageError
from fantasyid_core.images import resize
from fantasyid_core.meters import embedding
from fantasyid_core.views.collection import TRUST, FaceViews, choose, collect
from fantasyid_core.views.contact_sheet import contact_sheet
from fantasyid_core.views.tracking import Sighting, opening, score


@pytest.fixture(scope="module")
def reference(astronaut: torch.Tensor) -> DetectedFace:
    return detect(astronaut)[0]


@pytest.fixture(scope="module")
def portraits(six_faces: torch.Tensor) -> torch.Tensor:
    """Six different portraits (6, 256, 256, 3) cut from the group photo."""
    return torch.stack([resize(face.crop, 256, 256) for face in detect(six_faces)])


def sighting(frame: int, yaw: float, quality: float = 0.8, appearance: int | None = None) -> Sighting:
    """By its numbers alone; those with the same `appearance` (default: the frame) look the same."""
    identity = torch.nn.functional.one_hot(torch.tensor(frame if appearance is None else appearance), 32).float()
    return Sighting(frame, torch.zeros(4), torch.zeros(5, 2), HeadPose(yaw), quality, identity, identity)


# Photos


def test_reference_alone(reference: DetectedFace):
    views = collect(reference)
    assert torch.equal(views.crops, reference.crop[None])
    assert views.scores.tolist() == pytest.approx([reference.quality])
    assert views.poses.tolist() == [pytest.approx([reference.pose.yaw, reference.pose.pitch, reference.pose.roll])]
    assert views.origins == ("photo",)


def test_all_pictures_where_the_artist_says_so(reference: DetectedFace, portraits: torch.Tensor):
    views = collect(reference, portraits, people=TRUST)
    assert torch.equal(views.crops[0], reference.crop)
    assert views.crops.shape == (7, 512, 512, 3)
    assert sorted(views.origins[1:]) == [f"frame {i}" for i in range(6)]
    assert views.scores.shape == (7,)
    assert views.poses.shape == (7, 3)


def test_strangers_are_left_out_and_the_report_says_so(reference: DetectedFace, portraits: torch.Tensor):
    views = collect(reference, portraits)
    assert len(views.crops) == 1
    assert "0 of 6 tracks show the person" in views.report
    assert f"choose '{TRUST}'" in views.report or "6 somebody else" in views.report


def test_everyone_in_a_group_is_told_from_the_others(six_faces: torch.Tensor, portraits: torch.Tensor):
    """Each of six people, their photo darkened, enlarged and shifted, among the five others."""
    faces = detect(six_faces)
    for i, face in enumerate(faces):
        again = resize(face.crop, 300, 300).roll(3, 0)[None] * 0.7 + 0.1
        others = torch.cat([portraits[:i], portraits[i + 1 :]])
        pictures = [*others, *again]
        views = collect(face, pictures)
        assert set(views.origins[1:]) <= {"frame 5"}
        assert "1 of 6 tracks show the person" in views.report


def test_a_face_embedding_tells_people_apart_too(six_faces: torch.Tensor, portraits: torch.Tensor):
    pytest.importorskip("dlib")
    dlib = embedding.recogniser(embedding.load(embedding.DLIB))
    faces = detect(six_faces)
    again = resize(faces[2].crop, 300, 300).flip(1) * 0.6 + 0.2  # mirrored, which looks do not bear
    views = collect(faces[2], [portraits[0], again, portraits[4]], recogniser=dlib)
    assert views.origins == ("photo", "frame 1")
    assert "1 of 3 tracks show the person" in views.report


def test_fewer_views_are_the_first_of_more(reference: DetectedFace, portraits: torch.Tensor):
    everything, three = (collect(reference, portraits, max_views=k, people=TRUST) for k in (8, 3))
    assert torch.equal(three.crops, everything.crops[:3])
    assert len(collect(reference, portraits, max_views=1, people=TRUST).crops) == 1


def test_near_duplicates_are_dropped(reference: DetectedFace, portraits: torch.Tensor):
    clip = torch.cat([portraits[:1] * 0.9, portraits[:1], portraits[1:2], portraits[1:2]])
    views = collect(reference, clip, people=TRUST)
    assert len(views.crops) == 3


def test_reference_is_not_repeated(reference: DetectedFace, astronaut: torch.Tensor):
    views = collect(reference, astronaut)
    assert len(views.crops) == 1
    assert "1 of 1 tracks show the person" in views.report


def test_the_same_input_gives_the_same_views(reference: DetectedFace, portraits: torch.Tensor):
    one, two = (collect(reference, portraits, people=TRUST) for _ in range(2))
    assert torch.equal(one.crops, two.crops)
    assert one.report == two.report


def test_frames_without_a_face_are_skipped_and_reported(reference: DetectedFace, portraits: torch.Tensor):
    frames = torch.cat([torch.zeros(2, 256, 256, 3), portraits[:1]])
    views = collect(reference, frames, people=TRUST)
    assert views.origins == ("photo", "frame 2")
    assert "No face in 2 of 3: frame 0, 1; skipped." in views.report


def test_pictures_of_mixed_sizes_and_kinds(reference: DetectedFace, portraits: torch.Tensor, six_faces: torch.Tensor):
    grey = portraits[1].mean(-1, keepdim=True)
    bytes_with_alpha = torch.cat([portraits[2], portraits[2][..., :1]], -1).mul(255).round().to(torch.uint8)
    pictures = [portraits[0], grey, bytes_with_alpha, six_faces, portraits[3][:100]]
    views = collect(reference, pictures, people=TRUST)
    assert views.crops.dtype == torch.float32
    assert {"frame 0", "frame 1", "frame 2"} <= set(views.origins)


def test_a_damaged_frame_is_skipped_and_reported(reference: DetectedFace, portraits: torch.Tensor):
    frames = portraits.clone()
    frames[1, 10, 10] = torch.nan
    views = collect(reference, frames, people=TRUST)
    assert "frame 1" not in views.origins
    assert "1 could not be used: frame 1; skipped. The frame 1 contains NaN" in views.report


def test_unusable_input_says_why(reference: DetectedFace):
    with pytest.raises(ImageError, match="expected a batch"):
        collect(reference, torch.zeros(64, 64, 3))
    with pytest.raises(ImageError, match="NaN"):
        collect(reference, torch.full((2, 64, 64, 3), torch.nan))
    with pytest.raises(ImageError, match="max_views is 0"):
        collect(reference, max_views=0)
    with pytest.raises(ImageError, match="leave others out"):
        collect(reference, people="everybody")
    assert len(collect(reference, []).crops) == 1


# The choice


def test_the_next_view_is_the_one_that_differs_most():
    chosen = choose(torch.zeros(32), FRONTAL, [sighting(0, 5), sighting(1, 60), sighting(2, -40), sighting(3, 55)], 2)
    assert [s.frame for s in chosen] == [1, 2]


def test_a_blurred_view_must_be_very_different():
    pictures = [sighting(0, 50, quality=0.9), sighting(1, 60, quality=0.4), sighting(2, 55, quality=0.1)]
    assert choose(torch.zeros(32), FRONTAL, pictures, 8)[0].frame == 0
    assert 2 not in [s.frame for s in choose(torch.zeros(32), FRONTAL, pictures, 8)]


def test_what_looks_the_same_is_taken_once():
    pictures = [sighting(i, yaw, appearance=0) for i, yaw in enumerate((0, 4, 8))]
    assert [s.frame for s in choose(torch.zeros(32), FRONTAL, pictures, 8)] == [2]
    assert choose(pictures[0].appearance, FRONTAL, pictures, 8) == []
    assert choose(torch.zeros(32), FRONTAL, [], 8) == []


def test_an_open_mouth_or_closed_eyes_make_another_view():
    shut, open_, blink = (
        dataclasses.replace(sighting(i, 0, appearance=0), opening=torch.tensor(values))
        for i, values in enumerate(((0.0, 0.3), (0.5, 0.3), (0.0, 0.02)))
    )
    chosen = choose(shut.appearance, FRONTAL, [shut, blink, open_], 8, torch.tensor([0.02, 0.31]))
    assert [s.frame for s in chosen] == [2, 1], "what differs most comes first, what is the same not at all"
    assert choose(shut.appearance, FRONTAL, [open_, blink], 8) == [], "where it is not known nothing is compared"


def test_closed_eyes_halve_a_face_s_score(astronaut: torch.Tensor):
    face = ensure_dense_landmarks(detect(astronaut)[0])
    mouth, eyes = opening(face).tolist()
    assert mouth > 0.1, "she smiles"
    assert eyes > 0.2
    assert score(face) == face.quality
    asleep = face.dense_landmarks.clone()
    asleep[[160, 159, 158, 385, 386, 387]] = asleep[[144, 145, 153, 380, 374, 373]]
    assert score(dataclasses.replace(face, dense_landmarks=asleep)) == face.quality / 2


# The contact sheet


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


def test_contact_sheet_writes_pose_and_origin():
    crops = torch.full((2, 512, 512, 3), 0.5)
    poses = torch.tensor([(20.4, -5.0, 3.0), (0.0, 0.0, 0.0)])

    def lower_edge(**known) -> torch.Tensor:
        return contact_sheet(FaceViews(crops, torch.ones(2), **known))[230:, :256]

    assert (lower_edge() == lower_edge()[0, 0]).all()
    written = lower_edge(poses=poses)
    assert (written == 0).any()
    assert not torch.equal(written, lower_edge(poses=-poses))
    top = [contact_sheet(FaceViews(crops, torch.ones(2), origins=("photo", o)))[:30, 256:] for o in ("x 1", "rendered")]
    assert not torch.equal(*top)
