"""The judge that ships with the pack, on people and clips that it never saw."""

from dataclasses import replace

import pytest
import torch

from fantasyid_core.meters import attribute_regressor as attributes
from fantasyid_core.meters import motion
from fantasyid_core.meters.attribute_regressor import AttributeReading, AttributeRegressor
from fantasyid_lab import nano
from fantasyid_lab.evaluation import adherence, cases
from fantasyid_lab.people.clip import Clip, clip
from fantasyid_lab.people.colours import COLOURS
from fantasyid_lab.people.person import VALIDATION, person
from fantasyid_lab.people.render import RenderedClips

REGRESSOR_FOLDER = nano.SHIPPED / "judge"
pytestmark = pytest.mark.skipif(not REGRESSOR_FOLDER.is_dir(), reason="the trained judge is not there")


@pytest.fixture(scope="module")
def regressor() -> AttributeRegressor:
    return attributes.load(REGRESSOR_FOLDER)


@pytest.fixture(scope="module")
def drawn() -> list[cases.Case]:
    return cases.draw(6, seed=3)


@pytest.fixture(scope="module")
def truth(drawn: list[cases.Case]) -> RenderedClips:
    return cases.show([case.target for case in drawn], stride=4)


@pytest.fixture(scope="module")
def reading(regressor: AttributeRegressor, truth: RenderedClips) -> AttributeReading:
    return attributes.read_attributes(regressor, truth.frames.flatten(0, 1))


def test_it_sees_where_the_face_is_and_how_it_is_turned(reading: AttributeReading, truth: RenderedClips):
    off = (reading.landmarks * attributes.SIZE - 0.5 - truth.landmarks.flatten(0, 1)).norm(dim=-1)
    assert off.median() < 2.0  # px of 160
    assert (reading.pose - truth.pose.flatten(0, 1)).abs()[:, 0].median() < 4.0


def test_it_names_the_colours(reading: AttributeReading, drawn: list[cases.Case]):
    frames = len(reading.pose) // len(drawn)
    for part in ("shirt", "background"):
        wanted = torch.tensor([list(COLOURS).index(getattr(c.target.labels, part)) for c in drawn])
        assert (getattr(reading, part).argmax(1) == wanted.repeat_interleave(frames)).float().mean() > 0.8


def test_it_measures_how_much_faces_move(regressor: AttributeRegressor):
    """Against the true landmarks; clips whose expression is frozen, the head still turning, hardly move."""
    template = motion.head_template()

    def read(clips: list[Clip]) -> tuple[float, float]:
        shown, ours, theirs = cases.show(clips, stride=2), 0.0, 0.0
        for frames, landmarks in zip(shown.frames, shown.landmarks, strict=True):
            reading = attributes.read_attributes(regressor, frames)
            ours += motion.measure(reading.landmarks, template, reading.expression).face
            theirs += motion.measure(landmarks, template).face
        return ours, theirs

    clips = [clip(person(VALIDATION[i]), 1) for i in range(6)]
    frozen = [replace(one, expression=one.expression[:1].repeat(len(one.expression), 0)) for one in clips[:3]]
    ours, theirs = read(clips)
    assert ours == pytest.approx(theirs, rel=0.15)
    assert read(frozen)[0] < 0.3 * ours / 2


def test_a_frozen_picture_has_no_motion(regressor: AttributeRegressor, truth: RenderedClips):
    for frames in truth.frames[:2]:
        frozen = attributes.read_attributes(regressor, frames[:1].expand(5, -1, -1, -1))
        assert motion.measure(frozen.landmarks, motion.head_template(), frozen.expression).face < 0.05


def test_it_reads_turns(regressor: AttributeRegressor, drawn: list[cases.Case], truth: RenderedClips):
    for case, frames in zip(drawn, truth.frames, strict=True):
        assert adherence.turn_of(attributes.read_attributes(regressor, frames).pose[:, 0]) == case.target.labels.turn
