"""Prompt adherence, read from true clips of the generator: what a perfect judge would say of a perfect model."""

from dataclasses import replace

import pytest
import torch

from fantasyid_core.meters.attribute_regressor import AttributeReading
from fantasyid_lab.evaluation import adherence, cases
from fantasyid_lab.people.caption import stated_labels
from fantasyid_lab.people.clip import Clip, clip
from fantasyid_lab.people.colours import COLOURS
from fantasyid_lab.people.person import TEST, person


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [clip(person(TEST[i]), i) for i in range(150)]


def true_reading(one: Clip) -> AttributeReading:
    """What a judge without error reads."""
    frames, names = len(one.pose), list(COLOURS)
    shirt, background = torch.zeros(2, frames, len(names)).unbind(0)
    shirt[:, names.index(one.labels.shirt)] = 1
    background[:, names.index(one.labels.background)] = 1
    pose, expression = torch.from_numpy(one.pose), torch.from_numpy(one.expression)
    return AttributeReading(torch.zeros(frames, 68, 2), pose, expression, shirt, background)


def compared(clips: list[Clip], shown: list[Clip]) -> adherence.Adherence:
    readings = [adherence.read(true_reading(one)) for one in shown]
    return adherence.compare(readings, [c.labels for c in clips], [stated_labels(c.caption, c.labels) for c in clips])


def test_true_clips_do_what_their_captions_say(clips: list[Clip]):
    found = compared(clips, clips)
    assert found.turn > 0.97
    assert found.stays > 0.97
    assert found.expression > 0.97
    assert found.shirt == found.background == 1


def test_clips_of_other_captions_do_so_by_chance(clips: list[Clip]):
    found = compared(clips, clips[1:] + clips[:1])
    assert found.turn < 0.45  # half of them turn, half of those that way
    assert found.expression == pytest.approx(0.5, abs=0.12)
    assert found.shirt < 0.3


def test_limits_of_a_timid_judge_lie_half_way_between_what_it_reads_with_and_without(clips: list[Clip]):
    """It reads a fifth of every strength, and everybody's brows as a little raised."""
    true = [torch.from_numpy(one.expression) for one in clips]
    timid = [strengths / 5 + 0.3 for strengths in true]
    limits = adherence.thresholds(timid, true)
    assert limits["brows"] == pytest.approx(0.09, abs=0.01)  # a fifth of 0.9 or so, and nothing
    assert limits["smile"] == pytest.approx(0.3 + 0.52 / 5, abs=0.02)
    readings = [replace(true_reading(one), expression=read) for one, read in zip(clips, timid, strict=True)]
    labels, stated = [c.labels for c in clips], [stated_labels(c.caption, c.labels) for c in clips]
    assert adherence.compare([adherence.read(r, limits) for r in readings], labels, stated).expression > 0.95
    assert adherence.compare([adherence.read(r) for r in readings], labels, stated).expression < 0.8


def test_what_no_clip_shows_has_no_limit(clips: list[Clip]):
    calm = torch.zeros(25, 50)
    assert adherence.thresholds([calm], [calm]) == {}


def test_what_a_caption_leaves_out_does_not_count(clips: list[Clip]):
    turning = next(c for c in clips if "turn" in stated_labels(c.caption, c.labels))
    silent = adherence.compare([adherence.read(true_reading(turning))], [turning.labels], [set()])
    assert silent.turn != silent.turn  # NaN: nothing was asked
    assert silent.shirt != silent.shirt


def test_a_mirrored_turn_is_the_other_side(clips: list[Clip]):
    turning = [c for c in clips if c.labels.turn]
    for one in turning:
        mirrored = replace(one, pose=-one.pose)
        other = adherence.read(true_reading(mirrored)).turn
        assert {one.labels.turn, other} == {"left", "right"} or other is None


def test_captions_say_what_they_say(clips: list[Clip]):
    for one in clips:
        stated = stated_labels(one.caption, one.labels)
        assert ("shirt" in stated) <= (one.labels.shirt in one.caption)
        assert all(getattr(one.labels, name) for name in stated)
    smiling = [c for c in clips if c.labels.smile]
    assert 0.75 < sum("smile" in stated_labels(c.caption, c.labels) for c in smiling) / len(smiling) < 1


def test_cases_show_different_people_and_repeat_by_seed():
    drawn, again, other = cases.draw(4), cases.draw(4), cases.draw(4, seed=1)
    people = {case.target.person.seed for case in drawn + other}
    assert len(people) == 8
    assert people.isdisjoint(case.stranger.person.seed for case in drawn + other)
    assert all(seed in TEST for seed in people)
    assert [case.target.caption for case in drawn] == [case.target.caption for case in again]
    for case in drawn:
        assert case.reference.person is case.target.person is case.gallery.person
        assert case.reference.frames == 1
        assert case.target.caption != case.gallery.caption
