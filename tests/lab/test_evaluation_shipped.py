"""The judge that ships with the pack, on people and clips that it never saw."""

from dataclasses import replace

import pytest
import torch

from fantasyid_core.meters import attribute_regressor as judges
from fantasyid_core.meters import motion
from fantasyid_core.meters.attribute_regressor import AttributeReading, AttributeRegressor
from fantasyid_lab import nano
from fantasyid_lab.evaluation import adherence, cases
from fantasyid_lab.people.clip import Clip, clip
from fantasyid_lab.people.colours import COLOURS
from fantasyid_lab.people.person import VALIDATION, person
from fantasyid_lab.people.render import RenderedClips

JUDGE = nano.SHIPPED / "judge"
pytestmark = pytest.mark.skipif(not JUDGE.is_dir(), reason="the trained judge is not there")


@pytest.fixture(scope="module")
def judge() -> AttributeRegressor:
    return judges.load(JUDGE)


@pytest.fixture(scope="module")
def drawn() -> list[cases.Case]:
    return cases.draw(6, seed=3)


@pytest.fixture(scope="module")
def truth(drawn: list[cases.Case]) -> RenderedClips:
    return cases.show([case.target for case in drawn], every=4)


@pytest.fixture(scope="module")
def reading(judge: AttributeRegressor, truth: RenderedClips) -> AttributeReading:
    return judges.look(judge, truth.frames.flatten(0, 1))


def test_it_sees_where_the_face_is_and_how_it_is_turned(reading: AttributeReading, truth: RenderedClips):
    off = (reading.landmarks * judges.SIZE - 0.5 - truth.landmarks.flatten(0, 1)).norm(dim=-1)
    assert off.median() < 2.0  # px of 160
    assert (reading.pose - truth.pose.flatten(0, 1)).abs()[:, 0].median() < 4.0


def test_it_names_the_colours(reading: AttributeReading, drawn: list[cases.Case]):
    frames = len(reading.pose) // len(drawn)
    for part in ("shirt", "background"):
        wanted = torch.tensor([list(COLOURS).index(getattr(c.target.labels, part)) for c in drawn])
        assert (getattr(reading, part).argmax(1) == wanted.repeat_interleave(frames)).float().mean() > 0.8


def test_it_measures_how_much_faces_move(judge: AttributeRegressor):
    """Against the true landmarks; clips whose expression is frozen, the head still turning, hardly move."""
    template = motion.head_template()

    def read(clips: list[Clip]) -> tuple[float, float]:
        shown, ours, theirs = cases.show(clips, every=2), 0.0, 0.0
        for frames, landmarks in zip(shown.frames, shown.landmarks, strict=True):
            reading = judges.look(judge, frames)
            ours += motion.measure(reading.landmarks, template, reading.expression).face
            theirs += motion.measure(landmarks, template).face
        return ours, theirs

    clips = [clip(person(VALIDATION[i]), 1) for i in range(6)]
    frozen = [replace(one, expression=one.expression[:1].repeat(len(one.expression), 0)) for one in clips[:3]]
    ours, theirs = read(clips)
    assert ours == pytest.approx(theirs, rel=0.15)
    assert read(frozen)[0] < 0.3 * ours / 2


def test_a_frozen_picture_has_no_motion(judge: AttributeRegressor, truth: RenderedClips):
    for frames in truth.frames[:2]:
        frozen = judges.look(judge, frames[:1].expand(5, -1, -1, -1))
        assert motion.measure(frozen.landmarks, motion.head_template(), frozen.expression).face < 0.05


def test_it_reads_turns(judge: AttributeRegressor, drawn: list[cases.Case], truth: RenderedClips):
    for case, frames in zip(drawn, truth.frames, strict=True):
        assert adherence.turn_of(judges.look(judge, frames).pose[:, 0]) == case.target.labels.turn
