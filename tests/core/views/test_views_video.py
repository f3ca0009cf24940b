"""A video's faces: followed over the frames, other people left out, on the host's example clips (no download)."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fantasyid_core.detection.faces import detect
from fantasyid_core.detection.head_pose import HeadPose
from fantasyid_core.views.appearance import BUILT_IN, Recogniser, describe
from fantasyid_core.views.collection import collect
from fantasyid_core.views.recognition import assign_identities
from fantasyid_core.views.tracking import Sighting, Track, Tracks, follow


def clip_of(package: str, name: str, every: int, most: int) -> torch.Tensor:
    """Frames (T, H, W, 3) float32 of one of the host's animated example pictures."""
    spec = importlib.util.find_spec(package)
    file = Path(spec.origin).parent / "templates" / f"{name}.webp" if spec and spec.origin else None
    if file is None or not file.is_file():
        pytest.skip(f"ComfyUI's example clip {name} is not installed")
    frames = []
    with Image.open(file) as picture:
        for number in range(0, picture.n_frames, every)[:most]:
            picture.seek(number)
            frames.append(torch.from_numpy(np.array(picture.convert("RGB"))))
    return torch.stack(frames).float() / 255


@pytest.fixture(scope="module")
def classroom() -> torch.Tensor:
    """A boy turns from a profile to the camera and back; beside him another boy, on the wall a picture of a man."""
    return clip_of("comfyui_workflow_templates_media_api", "api_topaz_video_enhance-1", every=3, most=30)


@pytest.fixture(scope="module")
def guitarist() -> torch.Tensor:
    return clip_of("comfyui_workflow_templates_media_video", "video_wan2_2_14B_s2v-1", every=6, most=8)


@pytest.fixture(scope="module")
def followed(classroom: torch.Tensor) -> Tracks:
    return follow(classroom, BUILT_IN)


def main(tracks: Tracks) -> Track:
    """The track of the largest face."""
    return max(tracks.tracks, key=lambda track: float((track.last.box[2:] - track.last.box[:2]).prod()))


def unit(*values: float) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(values), dim=0)


@pytest.fixture
def sighting() -> Callable[..., Sighting]:
    def make(frame: int, identity: torch.Tensor, yaw: float = 0.0, quality: float = 0.5) -> Sighting:
        return Sighting(frame, torch.zeros(4), torch.zeros(5, 2), HeadPose(yaw), quality, identity, identity)

    return make


@pytest.fixture
def track(sighting: Callable[..., Sighting]) -> Callable[..., Track]:
    def make(frames: range, *identities: torch.Tensor) -> Track:
        sightings = [sighting(frame, identities[frame % len(identities)]) for frame in frames]
        track = Track(sightings[0])
        for one in sightings:
            track.add(one)
        return track

    return make


# Clips


def test_a_head_that_turns_is_followed_through_the_whole_clip(classroom: torch.Tensor, followed: Tracks):
    boy = main(followed)
    assert boy.frames == set(range(len(classroom)))
    yaws = [s.pose.yaw for s in boy.sightings]
    assert max(yaws) - min(yaws) > 45
    assert len(followed.tracks) >= 2, "the others are seen too"
    assert followed.without_face == []


def test_other_people_are_left_out_of_the_views(classroom: torch.Tensor):
    reference = max(detect(classroom[-1]), key=lambda face: face.quality)
    views = collect(reference, classroom, max_views=6)
    assert len(views.crops) == 6
    assert "tracks show the person" in views.report
    assert "somebody else (left out)" in views.report
    yaws = views.poses[:, 0]
    assert yaws.max() - yaws.min() > 45
    assert (views.scores > 0.4).all()


def test_the_other_boy_as_reference_gives_the_other_boy(classroom: torch.Tensor, followed: Tracks):
    """Whoever the reference is: none of the frames' main face is taken for him."""
    faces = sorted(detect(classroom[0]), key=lambda face: -face.quality)
    _, *others = faces
    assert others, "somebody else is in the frame"
    for other in others:
        identity = describe(torch.stack([other.crop]))
        assignment = assign_identities(identity, followed.tracks, BUILT_IN)
        assert main(followed) not in assignment.person


def test_across_cuts_only_the_person_is_taken(classroom: torch.Tensor, guitarist: torch.Tensor):
    """The boy, a cut to the guitarist, a black frame, and the boy again."""
    stills = [*classroom[-5:-3], *guitarist[:3], torch.zeros_like(guitarist[0]), *classroom[-2:]]
    reference = max(detect(classroom[-1]), key=lambda face: face.quality)
    views = collect(reference, stills, max_views=8)
    assert set(views.origins[1:]) <= {"frame 0", "frame 1", "frame 6"}  # frame 7 is the reference itself
    assert {"frame 0", "frame 1"} & set(views.origins)
    assert "No face in 1 of 8: frame 5" in views.report
    reference = max(detect(guitarist[4]), key=lambda face: face.quality)
    views = collect(reference, stills, max_views=8)
    assert set(views.origins[1:]) <= {"frame 2", "frame 3", "frame 4"}
    assert len(views.crops) > 1


def test_the_same_clip_gives_the_same_views(guitarist: torch.Tensor):
    reference = max(detect(guitarist[0]), key=lambda face: face.quality)
    one, two = (collect(reference, guitarist[:4]) for _ in range(2))
    assert torch.equal(one.crops, two.crops)


def test_one_frame(guitarist: torch.Tensor):
    reference = max(detect(guitarist[0]), key=lambda face: face.quality)
    assert len(collect(reference, guitarist[:1]).crops) == 1  # it repeats the reference
    assert len(collect(reference, guitarist[3:4]).crops) <= 2


# Tracks


def test_a_track_keeps_the_best_few_of_each_pose(sighting: Callable[..., Sighting]):
    """However long the video: four of every 15° of yaw and pitch."""
    sightings = [sighting(frame, unit(1.0, 0.0), yaw=frame % 61 - 30, quality=frame / 500) for frame in range(500)]
    track = Track(sightings[0])
    for one in sightings:
        track.add(one)
    assert track.frames == set(range(500))
    assert len(track.sightings) == 5 * 4
    assert min(s.frame for s in track.sightings) > 500 - 4 * 61
    assert [s.frame for s in track.sightings] == sorted(s.frame for s in track.sightings)


# Who is who


def test_the_like_are_taken_the_unlike_are_others_the_rest_is_ambiguous(track: Callable[..., Track]):
    reference = unit(1.0, 0.0, 0.0)
    same, other, ambiguous = (
        track(range(i * 10, i * 10 + 3), identity)
        for i, identity in enumerate((unit(0.8, 0.6, 0.0), unit(0.0, 0.0, 1.0), unit(0.4, 0.0, 0.9)))
    )
    assignment = assign_identities(reference, [same, other, ambiguous], BUILT_IN)
    assert (assignment.person, assignment.others, assignment.ambiguous) == ([same], [other], [ambiguous])


def test_a_profile_is_known_by_way_of_the_views_between(track: Callable[..., Track]):
    profile, between = unit(0.0, 1.0, 0.0), unit(1.0, 1.0, 0.0)
    turning, aside = track(range(0, 2), unit(1.0, 0.1, 0.0), between), track(range(20, 22), profile)
    assert assign_identities(unit(1.0, 0.0, 0.0), [aside, turning], BUILT_IN).person == [aside, turning]
    assert assign_identities(unit(1.0, 0.0, 0.0), [aside], BUILT_IN).person == []


def test_two_faces_of_one_frame_are_two_people(track: Callable[..., Track]):
    reference = unit(1.0, 0.0, 0.0)
    me, beside = track(range(5), unit(1.0, 0.1, 0.0)), track(range(4, 8), unit(1.0, 0.9, 0.0))
    assignment = assign_identities(reference, [beside, me], BUILT_IN)
    assert assignment.person == [me]
    assert assignment.others == [beside]


def test_twins_in_one_frame_cannot_be_told_apart(track: Callable[..., Track]):
    twins = [track(range(5), unit(1.0, 0.2, 0.0)), track(range(5), unit(1.0, 0.0, 0.2))]
    assignment = assign_identities(unit(1.0, 0.0, 0.0), twins, BUILT_IN)
    assert assignment.person == []
    assert assignment.ambiguous == twins


def test_a_recognition_network_takes_the_place_of_the_built_in_one(classroom: torch.Tensor, guitarist: torch.Tensor):
    """It gets aligned crops and gives unit vectors; here one that tells who is who by the picture's red."""
    shapes = []

    def embed(crops: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(crops.shape[1:]))
        red = (crops[..., 0] - crops[..., 2]).mean((1, 2))
        return torch.nn.functional.one_hot((red > 0.2).long(), 2).float()

    reference = max(detect(guitarist[0]), key=lambda face: face.quality)
    stills = [classroom[-1], guitarist[4], guitarist[6]]
    views = collect(reference, stills, recogniser=Recogniser(embed, 0.9, 0.5))
    assert set(shapes) == {(512, 512, 3)}
    assert "frame 0" not in views.origins
