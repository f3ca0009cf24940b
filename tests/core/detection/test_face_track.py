"""One person's points in every frame of a video: steady, not another's, and without the frames staying in memory."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fantasyid_core.detection import dense_landmarks, face_track
from fantasyid_core.detection.face_track import FaceTrack, follow
from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.errors import FaceNotFoundError, ImageError
from fantasyid_core.images import load_photo, resize
from fantasyid_core.views.appearance import describe
from tools.environment import ROOT

NOSE, FPS = 4, 25.0


@pytest.fixture(scope="module")
def head(astronaut: Tensor) -> Tensor:
    """(160, 160, 3) around the astronaut's face, at half size."""
    return resize(astronaut[0, :320, 80:400], 160, 160)


@pytest.fixture(scope="module")
def other() -> Tensor:
    """(120, 120, 3) around another person's face, of the same size."""
    photo = load_photo(ROOT / "workflows" / "assets" / "synthetic.jpg")
    x0, y0, x1, y1 = detect(photo)[0].box.round().int().tolist()
    width = x1 - x0
    return resize(photo[max(0, y0 - width // 3) : y1 + width // 4, max(0, x0 - width // 4) : x1 + width // 4], 120, 100)


def scene(*pictures: tuple[Tensor, int], width: int = 480) -> Tensor:
    """(160, width, 3): pictures with their left edges, the later before the earlier."""
    frame = torch.full((160, width, 3), 0.4)
    for picture, x in pictures:
        frame[: picture.shape[0], x : x + picture.shape[1]] = picture
    return frame


def nose(track: FaceTrack) -> list[float | None]:
    return [float(x) if there else None for x, there in zip(track.points[:, NOSE, 0], track.present, strict=True)]


def test_a_moving_face_is_followed_and_a_still_one_is_still(head):
    draw = torch.Generator().manual_seed(0)
    places = [20] * 12 + list(range(20, 140, 10))
    frames = torch.stack([scene((head, x)) for x in places])
    track = follow(frames + 0.01 * torch.randn(frames.shape, generator=draw), FPS)
    assert track.present.all()
    assert track.confidence.min() > 0.9
    assert track.points[6:12].std(0)[:, :2].max() < 0.2, "px"
    moved = track.points[-1, NOSE, 0] - track.points[0, NOSE, 0]
    assert moved == pytest.approx(places[-1] - places[0], abs=3)


def test_a_face_that_is_covered_and_comes_back_is_found_again(head):
    covered = scene((torch.rand(160, 160, 3), 40))
    track = follow(torch.stack([scene((head, 40))] * 3 + [covered] * 4 + [scene((head, 60))] * 3), FPS)
    assert track.present.tolist() == [True] * 3 + [False] * 4 + [True] * 3
    assert track.points[3:7].isnan().all()
    assert track.points[7, NOSE, 0] - track.points[2, NOSE, 0] == pytest.approx(20, abs=2), "not smoothed over the gap"
    assert track.report == "The face is in 6 of 10 frames (60%). It is missing in frames 3 to 6."


def test_where_two_people_cross_it_stays_with_the_first_one(head, other):
    """The other passes before the face; who is told by looks, and no frame is taken from the other's face."""
    path = [(10 + 24 * i, 340 - 24 * i) for i in range(13)]
    frames = [scene((head, x), (other, y)) for x, y in path]
    track = follow(frames, FPS, detect(head)[0], describe=describe)
    start = float(track.points[0, NOSE, 0]) - path[0][0]
    off = [abs(x - start - at) for x, (at, _) in zip(nose(track), path, strict=True) if x is not None]
    assert track.present[:3].all()
    assert track.present[-3:].all()
    assert max(off) < 15


def test_a_given_person_is_followed_not_the_largest_face(head, other):
    frames = torch.stack([scene((resize(other, 156, 130), 10), (head, 250))] * 3)
    wanted = detect(head)[0]
    track = follow(frames, FPS, wanted, describe=describe)
    assert track.present.all()
    assert track.points[0, NOSE, 0] > 250


def test_nothing_is_smoothed_over_a_cut(head):
    frames = torch.stack([scene((head, 20))] * 2 + [1 - scene(width=480)] + [1.2 * scene((head, 200)) - 0.2] * 2)
    track = follow(frames, FPS)
    assert track.present.tolist() == [True] * 2 + [False] + [True] * 2
    assert track.points[3, NOSE, 0] - track.points[0, NOSE, 0] == pytest.approx(180, abs=2)


def test_unusable_frames_show_no_face_and_others_are_used(head):
    frames = torch.stack([torch.full_like(scene(), torch.nan), scene((head, 20)), scene((head, 20))])
    assert follow(frames, FPS).present.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("frames", "error", "words"),
    [
        (torch.zeros(0, 64, 64, 3), ImageError, "no frames"),
        (torch.full((2, 64, 64, 3), torch.nan), ImageError, "frame 0 contains NaN"),
        (torch.zeros(2, 64, 64, 3), FaceNotFoundError, "not found in any of the 2 frames"),
        ([], ImageError, "no frames"),
    ],
)
def test_a_video_without_a_face_is_refused(frames, error, words):
    with pytest.raises(error, match=words):
        follow(frames, FPS)


def test_of_a_long_video_only_the_points_stay(monkeypatch):
    """A generator of 1,000 frames in chunks of ten; whatever looks at them, at most two chunks live at a time."""
    face = torch.rand(478, 3) * 40 + 10
    found = DetectedFace(torch.zeros(1), torch.tensor([10.0, 10, 50, 50]), face[:5, :2], 1.0, torch.zeros(1), face)
    monkeypatch.setattr(face_track, "detect", lambda *_, **__: [found])
    monkeypatch.setattr(dense_landmarks, "read", lambda *_, **__: (face[None], torch.ones(1)))
    monkeypatch.setattr(face_track, "look", lambda *_: (face[None], torch.ones(1)))
    alive: list[int] = []
    chunks: list[weakref.ref[Tensor]] = []

    def video() -> Iterator[Tensor]:
        for _ in range(100):
            chunk = torch.zeros(10, 64, 64, 3)
            chunks.append(weakref.ref(chunk))
            yield chunk
            del chunk
            gc.collect(0)
            alive.append(sum(own() is not None for own in chunks))

    track = follow(video(), FPS)
    assert track.present.sum() == 1000
    assert max(alive) <= 2


def test_landmarks_of_other_nodes_make_a_track_of_one_face():
    """The larger face of the first frame, wherever it stands among the faces; not NaN's, and not the other's."""
    face, small = 100 * torch.rand(478, 2), 300 + 40 * torch.rand(478, 2)
    useless = [torch.full_like(face, torch.nan), torch.zeros_like(face)]
    frames = [[small, face], [face + 2, small], [], [small], [*useless, face + 4]]
    track = face_track.from_landmarks(frames, FPS, smooth=False)
    assert track.present.tolist() == [True, True, False, False, True]
    assert torch.equal(track.points[4, :, :2], face + 4)


def test_depths_of_a_crop_become_px_of_the_photo():
    crop = 192 * torch.rand(478, 3)
    turned = 0.5 * crop[:, :2] @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]]) + 30
    torch.testing.assert_close(face_track.with_depths(turned, crop)[:, 2], 0.5 * crop[:, 2])


def test_landmarks_that_make_no_track_are_refused():
    with pytest.raises(FaceNotFoundError, match=r"\(68, 2\); expected \(478"):
        face_track.from_landmarks([[torch.rand(68, 2)]], FPS)
    with pytest.raises(FaceNotFoundError, match="None of the 2 frames"):
        face_track.from_landmarks([[], [torch.zeros(478, 3)]], FPS)


@pytest.mark.parametrize("name", ["Chiyo", "Rosa"])
def test_a_head_that_turns_in_a_slow_video_stays_the_same_person(name: str):
    """The pack's own videos, of 8 frames a second, in which looks change much from one half second to the next."""
    av = pytest.importorskip("av")
    with av.open(str(ROOT / "web" / "photos" / f"{name}.mp4")) as video:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)]
    assert follow(torch.stack(frames), 8.0, describe=describe).present.all()
