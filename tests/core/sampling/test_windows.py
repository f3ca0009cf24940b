"""Windows over a long video: what each covers, and how they are blended."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fantasyid_core.errors import SamplingError
from fantasyid_core.sampling.windows import Windows, windows

ANY = st.builds(
    lambda length, share, anchored: Windows(length, round(share * (length - anchored - 1)), anchored),
    st.integers(2, 20),
    st.floats(0, 1),
    st.booleans(),
)


@given(ANY, st.integers(1, 120))
def test_every_frame_is_seen_by_windows_of_the_length_that_the_model_knows(plan, frames):
    cut = plan.over(frames)
    assert {frame for window in cut for frame in window} == set(range(frames))
    assert all(len(window) == min(frames, plan.length) for window in cut)


@given(ANY, st.integers(1, 120))
def test_frames_of_a_window_follow_each_other_after_its_anchor(plan, frames):
    for window in plan.over(frames):
        own = window[1:] if plan.anchored else window
        assert own == list(range(own[0], own[0] + len(own))) if own else window == [0]


@given(ANY, st.integers(2, 120))
def test_neighbours_overlap_as_asked(plan, frames):
    cut = plan.over(frames)
    for before, after in pairwise(cut):
        assert len(set(before[plan.anchored :]) & set(after[plan.anchored :])) >= plan.overlap


@given(ANY, st.integers(1, 120))
def test_weights_reach_every_frame_and_the_first_counts_in_the_first_window_only(plan, frames):
    total = [0.0] * frames
    for number, window in enumerate(plan.over(frames)):
        weights = plan.weights(window)
        assert len(weights) == len(window)
        assert all(0 <= weight <= 1 for weight in weights)
        if number and plan.anchored:
            assert (window[0], weights[0]) == (0, 0.0)
        for frame, weight in zip(window, weights, strict=True):
            total[frame] += weight
    assert min(total) > 0


def test_neighbours_fade_into_each_other():
    plan = Windows(5, 3)
    first, second = plan.over(7)
    assert (first, second) == ([0, 1, 2, 3, 4], [2, 3, 4, 5, 6])
    assert plan.weights(first)[2:] == [0.75, 0.5, 0.25]
    assert plan.weights(second)[:3] == [0.25, 0.5, 0.75]


def test_work_grows_with_the_length_and_no_faster():
    plan = windows(49, 12)
    assert [len(plan.over((frames - 1) // 4 + 1)) for frames in (49, 97, 193, 385)] == [1, 3, 5, 10]


def test_a_video_of_one_window_is_cut_nowhere():
    assert windows(49, 12, anchored=True).over(13) == [list(range(13))]


@pytest.mark.parametrize(
    ("frames", "overlap", "said"),
    [
        (48, 12, "multiple of 4 plus 1"),
        (0, 0, "multiple of 4 plus 1"),
        (25, 25, "expected 0 to 20"),
        (25, -4, "expected 0 to 20"),
        (1, 4, "expected 0 to 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(frames, overlap, said):
    with pytest.raises(SamplingError, match=said):
        windows(frames, overlap, anchored=True)
