"""Synthetic people: the same from the same seed, true to their labels, and faces to a detector that never saw them."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fantasyid_core.detection.alignment import FFHQ_TEMPLATE
from fantasyid_core.detection.faces import detect
from fantasyid_core.errors import ImageError, MeshError
from fantasyid_lab.people import person as people
from fantasyid_lab.people.caption import MAX_BYTES
from fantasyid_lab.people.clip import MAX_STILL_YAW, Clip, clip, still
from fantasyid_lab.people.colours import COLOURS
from fantasyid_lab.people.head import load
from fantasyid_lab.people.person import person
from fantasyid_lab.people.render import PARTS, RenderedClips, render

RIGHT_EYE, LEFT_EYE, NOSE, RIGHT_CORNER, LEFT_CORNER = range(5)
seeds = st.integers(0, 2_099_999)


@pytest.fixture(scope="module")
def stills() -> list[Clip]:
    """Reference photos of 12 people."""
    return [still(person(people.TEST.start + i), 7) for i in range(12)]


@pytest.fixture(scope="module")
def photos(stills: list[Clip]) -> RenderedClips:
    """`stills` at 160 px."""
    return render(stills, 160)


def picture_of(turn: tuple[float, float, float], expression: dict[str, float] | None = None) -> torch.Tensor:
    """(68, 2) landmarks of the mean head in a picture, x to the right, y down, metres."""
    head = load()
    strengths = torch.zeros(1, len(head.expressions))
    for name, value in (expression or {}).items():
        strengths[0, head.expressions.index(name)] = value
    vertices = head.vertices(torch.zeros(1, 100), strengths, torch.tensor([turn]))[0]
    return vertices[head.landmarks, :2] * torch.tensor([1.0, -1.0])


def test_splits_are_disjoint():
    assert not set(people.TRAIN) & set(people.VALIDATION)
    assert not set(people.TRAIN) & set(people.TEST)
    assert not set(people.VALIDATION) & set(people.TEST)


@settings(max_examples=20, deadline=None)
@given(who=seeds, seed=st.integers(0, 2**31))
def test_the_same_seeds_give_the_same_clip(who: int, seed: int):
    first, again = clip(person(who), seed), clip(person(who), seed)
    assert torch.equal(first.person.shape_code, again.person.shape_code)
    for field in ("pose", "expression", "camera"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    assert first.caption == again.caption
    assert vars(first.labels) == vars(again.labels)


def test_other_seeds_give_other_people_and_other_scenes_of_one_person():
    codes = torch.stack([person(seed).shape_code for seed in range(200)])
    assert torch.cdist(codes, codes).fill_diagonal_(99).amin() > 3
    assert codes.std(0).mean() == pytest.approx(1, abs=0.15)  # components are standard deviations
    one = [clip(person(3), seed) for seed in range(60)]
    assert len({c.labels.shirt for c in one}) == len(COLOURS)
    assert len({c.labels.background for c in one}) == len(COLOURS)
    assert 0.05 < np.mean([c.scene.hair is not c.person.hair for c in one]) < 0.7


def test_rendering_twice_gives_the_same_picture():
    clips = [clip(person(1), 0, 2)]
    assert torch.equal(render(clips, 64).frames, render(clips, 64).frames)


def test_a_batch_is_its_clips_one_by_one():
    clips = [clip(person(seed), seed, 3) for seed in (5, 6)]
    together = render(clips, 64)
    for i, alone in enumerate(clips):
        torch.testing.assert_close(together.frames[i], render([alone], 64).frames[0], atol=2e-3, rtol=0)


def test_turns_go_where_their_signs_say():
    straight = picture_of((0, 0, 0))
    middle = straight[[RIGHT_EYE, LEFT_EYE]].mean(0)
    assert straight[RIGHT_EYE, 0] < straight[LEFT_EYE, 0]  # the person's right is on the picture's left
    assert straight[NOSE, 1] > middle[1]

    def nose_from_eyes(turn: tuple[float, float, float]) -> torch.Tensor:
        turned = picture_of(turn)
        return turned[NOSE] - turned[[RIGHT_EYE, LEFT_EYE]].mean(0)

    assert nose_from_eyes((25, 0, 0))[0] > 0.01  # yaw > 0: looks to the picture's right
    assert nose_from_eyes((-25, 0, 0))[0] < -0.01
    assert (
        nose_from_eyes((0, 20, 0))[1] < nose_from_eyes((0, 0, 0))[1] < nose_from_eyes((0, -20, 0))[1]
    )  # pitch > 0: up
    leaning = picture_of((0, 0, 15))
    assert leaning[LEFT_EYE, 1] > leaning[RIGHT_EYE, 1] + 0.01  # roll > 0: clockwise
    assert leaning[[RIGHT_EYE, LEFT_EYE], 0].mean() > middle[0] + 0.01


def test_a_turn_and_its_mirror_image_mirror_each_other():
    """The mean person is nearly symmetric."""
    right, left = picture_of((30, 5, 0)), picture_of((-30, 5, 0))
    swapped = left[[LEFT_EYE, RIGHT_EYE, NOSE, LEFT_CORNER, RIGHT_CORNER]] * torch.tensor([-1.0, 1.0])
    assert (right[:5] - swapped).norm(dim=1).amax() < 0.002


def test_actions_do_what_their_names_say():
    rest = picture_of((0, 0, 0))
    chin = 5 + 8
    assert picture_of((0, 0, 0), {"jawOpen": 1})[chin, 1] > rest[chin, 1] + 0.008
    smile = picture_of((0, 0, 0), {"mouthSmileLeft": 1, "mouthSmileRight": 1})
    assert smile[LEFT_CORNER, 0] - smile[RIGHT_CORNER, 0] > rest[LEFT_CORNER, 0] - rest[RIGHT_CORNER, 0] + 0.005
    assert smile[RIGHT_CORNER, 1] < rest[RIGHT_CORNER, 1]
    brows = slice(22, 32)
    raised = {"browInnerUp": 1, "browOuterUpLeft": 1, "browOuterUpRight": 1}
    assert (picture_of((0, 0, 0), raised)[brows, 1] < rest[brows, 1]).all()
    right = picture_of((0, 0, 0), {"eyeLookOutLeft": 1, "eyeLookInRight": 1})
    assert (right[:2, 0] > rest[:2, 0] + 0.002).all()


def test_codes_of_another_size_say_so():
    head = load()
    with pytest.raises(MeshError, match=r"shape has shape \(1, 99\)"):
        head.vertices(torch.zeros(1, 99))
    with pytest.raises(MeshError, match="pose"):
        head.vertices(torch.zeros(1, 100), None, torch.zeros(1, 6))


@settings(max_examples=40, deadline=None)
@given(who=seeds, seed=st.integers(0, 2**31))
def test_motion_shows_what_the_labels_say(who: int, seed: int):
    drawn = clip(person(who), seed)
    labels, head = drawn.labels, load()
    yaw, pitch, roll = drawn.pose.T
    strength = dict(zip(head.expressions, drawn.expression.T, strict=True))
    change = yaw[np.abs(yaw - yaw[0]).argmax()] - yaw[0]
    assert (labels.turn == "right") == (change > 12)
    assert (labels.turn == "left") == (change < -12)
    assert np.abs(yaw).max() < 55
    assert (np.ptp(pitch) > 9) == labels.nod
    assert (labels.tilt is not None) == (np.ptp(roll) > 8)
    assert (strength["mouthSmileLeft"].max() > 0.5) == labels.smile
    assert (strength["eyeBlinkLeft"].max() > 0.6) == labels.blink
    assert (strength["browInnerUp"].max() > 0.5) == labels.brows
    assert (strength["eyeLookOutLeft"].max() > 0.4) == (labels.gaze == "right")
    assert (strength["eyeLookInLeft"].max() > 0.4) == (labels.gaze == "left")
    assert np.abs(np.diff(yaw)).max() < 14  # degrees a frame: nobody jerks
    assert drawn.expression.min() >= 0
    assert drawn.expression.max() <= 1


@settings(max_examples=150, deadline=None)
@given(who=seeds, seed=st.integers(0, 2**31))
@example(who=397555, seed=1726765)  # three events in the longest words
def test_captions_say_nothing_that_is_not_so(who: int, seed: int):
    drawn = clip(person(who), seed)
    labels, text = drawn.labels, drawn.caption.lower()
    tokens = text.replace(",", " ").replace(".", " ").split()
    hair = drawn.scene.hair.name.split()
    colours = [word for word in tokens if word in COLOURS]
    assert set(colours) <= {labels.shirt, labels.background, hair[-1]}
    if not {labels.turn, labels.tilt, labels.gaze} & {"left"}:
        assert "left" not in tokens
    if not {labels.turn, labels.tilt, labels.gaze} & {"right"}:
        assert "right" not in tokens
    for happens, stems in (
        (labels.smile, ("smil",)),
        (labels.talk, ("talk", "speak", "says")),
        (labels.blink, ("blink", "closes")),
        (labels.nod, ("nod",)),
        (labels.brows, ("brow ", "brows", "eyebrow")),
    ):
        assert happens or not any(stem in text for stem in stems)
    assert not ("woman" in tokens and drawn.person.sex == "male")
    assert not ("man" in tokens and drawn.person.sex == "female")
    assert text[-1] == "."
    assert len(drawn.caption.encode()) <= MAX_BYTES


def test_captions_vary_and_mostly_tell():
    clips = [clip(person(seed), seed) for seed in range(300)]
    assert len({c.caption for c in clips}) > 295
    turned = [c for c in clips if c.labels.turn]
    assert 0.8 < np.mean([c.labels.turn in c.caption for c in turned]) < 1
    assert 0.8 < np.mean([c.labels.shirt in c.caption for c in clips]) < 1
    assert 0.8 < np.mean([c.labels.background in c.caption for c in clips]) < 1


def test_the_detector_finds_every_face_where_it_is(photos: RenderedClips, stills: list[Clip]):
    errors = []
    for frame, truth in zip(photos.frames[:, 0], photos.landmarks[:, 0, :5], strict=True):
        faces = detect(frame)
        assert len(faces) == 1
        eyes = (truth[LEFT_EYE] - truth[RIGHT_EYE]).norm()
        errors.append((faces[0].landmarks - truth).norm(dim=1) / eyes)
    assert all(np.abs(drawn.pose[0, 0]) <= MAX_STILL_YAW for drawn in stills)
    assert torch.cat(errors).mean() < 0.12  # of the distance between the eyes


def test_pictures_show_the_colours_that_are_named(photos: RenderedClips, stills: list[Clip]):
    """The nearest of all named colours, by hue and lightness, is the right one for nearly all backgrounds."""
    palette = torch.tensor(list(COLOURS.values())) / 255
    right = 0
    for frame, parts, drawn in zip(photos.frames[:, 0], photos.parts[:, 0], stills, strict=True):
        behind = frame[parts == PARTS.index("background")]
        nearest = torch.cdist(behind, palette).argmin(1).mode().values
        right += list(COLOURS)[nearest] == drawn.labels.background
    assert right >= len(stills) - 2


def test_parts_lie_where_they_should(photos: RenderedClips):
    parts, landmarks = photos.parts[:, 0], photos.landmarks[:, 0]
    shares = torch.stack([(parts == i).float().mean((1, 2)) for i in range(len(PARTS))], 1).mean(0)
    assert 0.3 < shares[PARTS.index("background")] < 0.7
    assert 0.06 < shares[PARTS.index("face")] < 0.3
    assert shares[PARTS.index("shirt")] > 0.05
    on_nose = [parts[i, int(y.round()), int(x.round())] for i, (x, y) in enumerate(landmarks[:, NOSE])]
    assert {int(part) for part in on_nose} == {PARTS.index("face")}
    height = landmarks[:, 5 + 8, 1] - landmarks[:, 22:32, 1].amin(1)  # chin to brows, about two thirds of a face
    assert ((height > 0.24 * 160) & (height < 0.44 * 160)).all()


def test_face_crops_are_aligned(stills: list[Clip]):
    crops = render(stills[:4], 112, crop=torch.zeros(4, 1, 4))
    target = torch.tensor(FFHQ_TEMPLATE) * (112 / 512)
    assert (crops.landmarks[:, 0, :5] - target).norm(dim=2).mean() < 6
    assert (crops.landmarks[:, 0, :5].mean(1) - target.mean(0)).norm(dim=1).amax() < 0.1
    shifted = render(stills[:4], 112, crop=torch.tensor([0.1, -0.05, 0.0, 0.0]).expand(4, 1, 4))
    torch.testing.assert_close(
        shifted.landmarks - crops.landmarks, torch.tensor([11.2, -5.6]).expand(4, 1, 68, 2), atol=1e-2, rtol=0
    )
    turned = render(stills[:4], 112, crop=torch.tensor([0.0, 0.0, 0.0, 20.0]).expand(4, 1, 4))
    torch.testing.assert_close(turned.pose[..., 2] - crops.pose[..., 2], torch.full((4, 1), 20.0), atol=1e-2, rtol=0)


class _Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


def test_memory_does_not_grow_with_the_clip():
    largest = []
    for frames in (8, 24):
        with _Largest() as watched:
            render([clip(person(2), 0, frames)], 128)
        largest.append(watched.bytes)
    assert largest[1] < 1.3 * largest[0]


def test_unequal_clips_and_crops_say_so(stills: list[Clip]):
    with pytest.raises(ImageError, match=r"\[1, 2\] frames"):
        render([stills[0], clip(person(0), 0, 2)])
    with pytest.raises(ImageError, match="no frames"):
        render([])
    with pytest.raises(ImageError, match=r"expected \(1, 1, 4\)"):
        render(stills[:1], crop=torch.zeros(1, 4))
